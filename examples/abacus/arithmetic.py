"""Sums, differences, products and short chains of them."""

from __future__ import annotations

from random import Random

from abacus.task import Task, worked

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
        steps, result = "", 0
        try:
            for left, sign, right in operations:
                named = values | {"r": result}
                lines, result = worked(named[left], sign, named[right])
                steps += lines
        except ValueError:  # below zero: other numbers
            continue
        asked = text.format(**values)
        thought = f"{asked.replace(' ', '')}\n{steps}"
        return Task(rng.choice(ASKED).format(asked), str(result), "chain", thought)


def _binary(rng: Random, left: int, sign: str, right: int, kind: str) -> Task:
    lines, value = worked(left, sign, right)
    steps = f"{left}{sign}{right}\n{lines}"
    return Task(rng.choice(ASKED).format(f"{left} {sign} {right}"), str(value), kind, steps)
