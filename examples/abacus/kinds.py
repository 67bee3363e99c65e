"""The kinds of tasks: sums, differences, products and short chains of them; programs; and stories."""

from __future__ import annotations

from random import Random

from abacus.task import Task, result

ASKED = ("What is {}?", "Compute {}.", "{} =", "Work out {}.")
# Left to right in the order of working: (text, operations as (left, sign, right)); "r" is the
# result so far.
CHAINS = (
    ("{a} + {b} - {c}", (("a", "+", "b"), ("r", "-", "c"))),
    ("{a} - {b} + {c}", (("a", "-", "b"), ("r", "+", "c"))),
    ("{a} + {b} + {c}", (("a", "+", "b"), ("r", "+", "c"))),
    ("{a} * {c} + {b}", (("a", "*", "c"), ("r", "+", "b"))),
    ("{a} * {c} - {b}", (("a", "*", "c"), ("r", "-", "b"))),
    ("{b} + {a} * {c}", (("a", "*", "c"), ("b", "+", "r"))),
    ("({a} + {b}) * {c}", (("a", "+", "b"), ("r", "*", "c"))),
    ("({a} - {b}) * {c}", (("a", "-", "b"), ("r", "*", "c"))),
)


def number(rng: Random, digits: int) -> int:
    """A number of exactly that many digits; of one digit, zero included."""
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def total(rng: Random, size: int) -> Task:
    """A sum of two numbers, the longer of `size` digits."""
    pair = [number(rng, size), number(rng, rng.randint(max(1, size - 2), size))]
    rng.shuffle(pair)
    return _binary(rng, pair[0], "+", pair[1], "sum")


def difference(rng: Random, size: int) -> Task:
    """The larger of two numbers less the smaller, the larger of `size` digits."""
    pair = (number(rng, size), number(rng, rng.randint(max(1, size - 2), size)))
    return _binary(rng, max(pair), "-", min(pair), "difference")


def product(rng: Random, size: int) -> Task:
    """Up to three digits by one of them, from size 4 on two or three by two."""
    left, right = (size, 1) if size < 4 else (2 if size == 4 else 3, 2)
    if size < 4:
        left = rng.randint(max(1, size - 1), size)
    a, b = number(rng, left), number(rng, right)
    return _binary(rng, a, "*", b, "product")


def chain(rng: Random, size: int) -> Task:
    """Two operations, the result of the first one an operand of the second: sums and differences of
    single digits, from size 3 on products too, from size 4 on numbers of up to two digits."""
    text, operations = rng.choice(CHAINS if size > 2 else CHAINS[:3])
    digits = 1 if size < 4 else 2
    while True:
        first = rng.randint(1, digits) if size < 5 else digits
        values = {"a": number(rng, first), "b": number(rng, rng.randint(1, digits))}
        values["c"] = number(rng, 1 if "*" in text else rng.randint(1, digits))
        found = 0
        try:
            for left, sign, right in operations:
                named = values | {"r": found}
                found = result(named[left], sign, named[right])
        except ValueError:  # below zero: other numbers
            continue
        return Task(rng.choice(ASKED).format(text.format(**values)), str(found), "chain")


def _binary(rng: Random, left: int, sign: str, right: int, kind: str) -> Task:
    value = result(left, sign, right)
    return Task(rng.choice(ASKED).format(f"{left} {sign} {right}"), str(value), kind)


# Small programs: assignments, perhaps a loop, and a number printed.

NAMES = "abcxy"
MOST = 999


def program(rng: Random, size: int) -> Task:
    """Two to five assignments, or from size 3 on one loop of up to four turns, then `print`. Numbers stay between 0
    and 999; up to size 2 they begin below 10."""
    while True:
        try:
            return _loop(rng, size) if size > 2 and rng.random() < 0.5 else _straight(rng, size)
        except ValueError:  # a number out of range: another program
            continue


def _straight(rng: Random, size: int) -> Task:
    state: dict[str, int] = {}
    code: list[str] = []
    names = rng.sample(NAMES, 3)
    for name in names[: 1 if size == 1 else rng.randint(1, 2)]:
        _assign(rng, state, name, size, code)
    for _ in range(rng.randint(1, 1 if size < 3 else 3)):
        _compute(rng, state, rng.choice(names), size, code)
    return _task(code, state, code[-1].split()[0])


def _loop(rng: Random, size: int) -> Task:
    state: dict[str, int] = {}
    code: list[str] = []
    name, other, turn = *rng.sample(NAMES, 2), "i"
    _assign(rng, state, name, size, code)
    _assign(rng, state, other, size, code)
    turns = rng.randint(2, max(2, min(4, size - 1)))
    sign = rng.choice("+++-*")
    by: str = rng.choice((other, turn, str(rng.randint(2, 9)))) if sign != "*" else rng.choice("23")
    code += [f"for {turn} in range({turns}):", f"    {name} = {name} {sign} {by}"]
    for n in range(turns):
        state[turn] = n
        _step(state, name, name, sign, by)
    return _task(code, state, name)


def _assign(rng: Random, state: dict[str, int], name: str, size: int, code: list[str]) -> None:
    state[name] = rng.randint(1, 9 if size < 3 or rng.random() < 0.4 else 99)
    code.append(f"{name} = {state[name]}")


def _compute(rng: Random, state: dict[str, int], name: str, size: int, code: list[str]) -> None:
    left, sign = rng.choice(sorted(state)), rng.choice("+-*")
    known = sorted(state)
    small = [other for other in known if state[other] < 10]
    if sign == "*":
        right = rng.choice([*small, str(rng.randint(2, 9))])
    else:
        right = rng.choice([*known, str(rng.randint(1, 9 if size < 3 else 99))])
    code.append(f"{name} = {left} {sign} {right}")
    _step(state, name, left, sign, right)


def _step(state: dict[str, int], name: str, left: str, sign: str, right: str) -> None:
    amount = int(right) if right.isdigit() else state[right]
    value = result(state[left], sign, amount)
    if value > MOST:
        raise ValueError(f"{value} is above {MOST}")
    state[name] = value


def _task(code: list[str], state: dict[str, int], shown: str) -> Task:
    text = "\n".join([*code, f"print({shown})"])
    return Task(f"What does this program print?\n{text}", str(state[shown]), "program")


# Stories: somebody has things, gets more, gives some away, and is asked how many are left.

PEOPLE = {
    **dict.fromkeys(("Anna", "Clara", "Emma", "Lena"), "She"),
    **dict.fromkeys(("Ben", "David", "Felix", "Tom"), "He"),
}
THINGS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps")
STARTS = ("{who} has {n} {things}.", "{who} starts with {n} {things}.", "{who} owns {n} {things}.")
PACKED = "{who} has {m} boxes with {n} {things} in each."
CHANGES = {
    "+": (
        "{she} buys {n} more.",
        "{she} finds {n} more.",
        "{other} gives {who} {n} more.",
        "Then {who} gets {n} {things} as a present.",
    ),
    "-": (
        "{she} gives {n} to {other}.",
        "{she} loses {n} of them.",
        "{she} sells {n} {things}.",
        "Then {other} takes {n} away.",
    ),
    "*": ("Then the number grows to {n} times as many.", "{she} makes it {n} times as many."),
}
ASIDE = "{other} has {n} {things}."
LIMITS = (10, 20, 50, 100, 100, 1000)
QUESTION = "How many {things} does {who} have now?"


def story(rng: Random, size: int) -> Task:
    """Changes to a number of things: one of them up to size 2 (things in boxes count as one), else up to
    three. Numbers are below 10, 20, 50 or 100 at sizes 1 to 4, at size 6 below 1000. One story in four tells of
    somebody else's things as well, which do not count."""
    who, other = rng.sample(sorted(PEOPLE), 2)
    things = rng.choice(THINGS)
    words = {"who": who, "other": other, "she": PEOPLE[who], "things": things}
    limit = LIMITS[size - 1]
    count = rng.randint(2, limit - 1)
    if packed := rng.random() < 0.25:
        boxes, each = rng.randint(2, 5 if size < 3 else 9), rng.randint(2, min(99, limit - 1))
        sentences = [PACKED.format(**words, m=boxes, n=each)]
        count = each * boxes
    else:
        sentences = [rng.choice(STARTS).format(**words, n=count)]
    if rng.random() < 0.25:
        sentences.append(ASIDE.format(**words, n=rng.randint(2, limit - 1)))
    for _ in range(rng.randint(1, min(3, (size + 1) // 2)) - (packed and size < 3)):
        sign = rng.choice("++--*" if count < 1000 else "+-")
        most = {"*": min(9, limit // 4), "-": min(limit - 1, count), "+": limit - 1}[sign]
        amount = rng.randint(min(2, most), most)
        count = result(count, sign, amount)
        sentences.append(rng.choice(CHANGES[sign]).format(**words, n=amount))
    sentences.append(QUESTION.format(**words))
    return Task(" ".join(sentences), str(count), "story")
