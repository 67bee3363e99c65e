"""Small programs: assignments, perhaps a loop, and a number printed."""

from __future__ import annotations

from random import Random

from abacus.task import Task, worked

NAMES = "abcxy"
ASKED = "What does this program print?\n"
MOST = 999


def program(rng: Random, size: int) -> Task:
    """Two to five assignments, or from size 3 on one loop of up to four turns, then `print`.

    Numbers stay between 0 and 999; up to size 2 they begin below 10.
    """
    while True:
        try:
            return _loop(rng, size) if size > 2 and rng.random() < 0.5 else _straight(rng, size)
        except ValueError:  # a number out of range: another program
            continue


def _straight(rng: Random, size: int) -> Task:
    state: dict[str, int] = {}
    code: list[str] = []
    steps = ""
    names = rng.sample(NAMES, 3)
    for name in names[: 1 if size == 1 else rng.randint(1, 2)]:
        steps += _assign(rng, state, name, size, code)
    for _ in range(rng.randint(1, 1 if size < 3 else 3)):
        steps += _compute(rng, state, rng.choice(names), size, code)
    return _task(code, steps, state, code[-1].split()[0])


def _loop(rng: Random, size: int) -> Task:
    state: dict[str, int] = {}
    code: list[str] = []
    name, other, turn = *rng.sample(NAMES, 2), "i"
    steps = _assign(rng, state, name, size, code)
    steps += _assign(rng, state, other, size, code)
    turns = rng.randint(2, max(2, min(4, size - 1)))
    sign = rng.choice("+++-*")
    by: str = rng.choice((other, turn, str(rng.randint(2, 9)))) if sign != "*" else rng.choice("23")
    code += [f"for {turn} in range({turns}):", f"    {name} = {name} {sign} {by}"]
    for n in range(turns):
        state[turn] = n
        steps += f"{turn}={n}<{turns}\n" + _step(state, name, name, sign, by)
    steps += f"{turn}={turns}\n"
    return _task(code, steps, state, name)


def _assign(rng: Random, state: dict[str, int], name: str, size: int, code: list[str]) -> str:
    state[name] = rng.randint(1, 9 if size < 3 or rng.random() < 0.4 else 99)
    code.append(f"{name} = {state[name]}")
    return f"{name}={state[name]}\n"


def _compute(rng: Random, state: dict[str, int], name: str, size: int, code: list[str]) -> str:
    left, sign = rng.choice(sorted(state)), rng.choice("+-*")
    known = sorted(state)
    small = [other for other in known if state[other] < 10]
    if sign == "*":
        right = rng.choice([*small, str(rng.randint(2, 9))])
    else:
        right = rng.choice([*known, str(rng.randint(1, 9 if size < 3 else 99))])
    code.append(f"{name} = {left} {sign} {right}")
    return _step(state, name, left, sign, right)


def _step(state: dict[str, int], name: str, left: str, sign: str, right: str) -> str:
    amount = int(right) if right.isdigit() else state[right]
    lines, value = worked(state[left], sign, amount, name)
    if value > MOST:
        raise ValueError(f"{value} is above {MOST}")
    state[name] = value
    return f"{name}={left}{sign}{right}\n{lines}"


def _task(code: list[str], steps: str, state: dict[str, int], shown: str) -> Task:
    text = "\n".join([*code, f"print({shown})"])
    return Task(ASKED + text, str(state[shown]), "program", steps)
