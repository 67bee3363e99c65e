"""Sums, differences, products and short chains of them."""

from __future__ import annotations

from random import Random

from abacus.task import Task
from abacus.working import worked

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
    """A number of just so many digits; of one digit, zero included."""
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def total(rng: Random, size: int) -> Task:
    """A sum of two numbers, the longer of at most `size` digits."""
    digits = rng.randint(min(2, size), size)
    pair = [number(rng, digits), number(rng, rng.randint(max(1, digits - 2), digits))]
    rng.shuffle(pair)
    return _binary(rng, pair[0], "+", pair[1], "sum")


def difference(rng: Random, size: int) -> Task:
    """The larger of two numbers less the smaller."""
    digits = rng.randint(min(2, size), size)
    pair = (number(rng, digits), number(rng, rng.randint(max(1, digits - 2), digits)))
    return _binary(rng, max(pair), "-", min(pair), "difference")


def product(rng: Random, size: int) -> Task:
    """A product of up to `size` / 2 digits by one or two digits."""
    left = number(rng, rng.randint(1, max(1, size // 2)))
    right = number(rng, rng.randint(1, 1 if size < 4 else 2))
    return _binary(rng, left, "*", right, "product")


def chain(rng: Random, size: int) -> Task:
    """Two operations, the result of the first one an operand of the second."""
    text, operations = rng.choice(CHAINS)
    digits = 1 if size < 3 else 2
    while True:
        values = {"a": number(rng, digits), "b": number(rng, rng.randint(1, digits))}
        values["c"] = number(rng, 1 if "*" in text else rng.randint(1, digits))
        steps, result = "", 0
        try:
            for left, sign, right in operations:
                named = values | {"r": result}
                lines, result = worked(named[left], sign, named[right])
                steps += lines
        except ValueError:  # below zero: other numbers
            continue
        return Task(rng.choice(ASKED).format(text.format(**values)), str(result), "chain", steps)


def _binary(rng: Random, left: int, sign: str, right: int, kind: str) -> Task:
    steps, value = worked(left, sign, right)
    return Task(rng.choice(ASKED).format(f"{left} {sign} {right}"), str(value), kind, steps)
