"""A task, how an answer to it is graded, and the steps that lead to it.

A thought begins with all that is to be done, in one line. Then one operation is one line,
`4827+396:7+6+0=13,2+9+1=12,8+3+1=12,4+0+1=5;=5223`: the operands again, the columns from the right with
what is carried, and the result, so that each step is short and looks only at what stands nearby. A
variable that takes the result stands before the last `=`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from itertools import zip_longest

SHARE = 32  # one prompt in 32 is never trained on
_NUMBER = re.compile(r"-?\d+")


@dataclass(frozen=True, slots=True)
class Task:
    """A question, its answer, what kind of question it is, and the steps that lead there."""

    prompt: str
    answer: str
    kind: str
    steps: str
    apart: str = ""  # what is held out as one, in whatever words; "" = the prompt

    @property
    def held_out(self) -> bool:
        """True where the task belongs to the tests: decided by a hash of its prompt, or of what it asks, alone, so
        that no seed of the training stream can bring it."""
        named = (self.apart or self.prompt).encode()
        digest = hashlib.blake2b(named, digest_size=4).digest()
        return int.from_bytes(digest, "big") % SHARE == 0


def graded(text: str, answer: str) -> bool:
    """True where the last number in `text` is `answer`."""
    found = _NUMBER.findall(text)
    return bool(found) and found[-1] == answer


def worked(left: int, sign: str, right: int, name: str = "") -> tuple[str, int]:
    """The lines of `left sign right`, and its value; `name` is the variable that takes it. ValueError: a sign other
    than + - *, a negative number, or a difference below zero."""
    if left < 0 or right < 0 or (sign == "-" and right > left):
        raise ValueError(f"{left}{sign}{right} has a negative number in it")
    match sign:
        case "+":
            columns, value = _sum(left, right), left + right
        case "-":
            columns, value = _difference(left, right), left - right
        case "*" if right >= 10:
            return _long_product(left, right, name)
        case "*":
            columns, value = _product(left, right), left * right
        case _:
            raise ValueError(f"sign must be one of + - *, got {sign!r}")
    return f"{left}{sign}{right}:{','.join(columns)};{name}={value}\n", value


def _digits(number: int) -> list[int]:
    """From the right."""
    return [int(digit) for digit in reversed(str(number))]


def _sum(left: int, right: int) -> list[str]:
    columns, carry = [], 0
    for a, b in zip_longest(_digits(left), _digits(right), fillvalue=0):
        total = a + b + carry
        columns.append(f"{a}+{b}+{carry}={total}")
        carry = total // 10
    return columns


def _difference(left: int, right: int) -> list[str]:
    columns, borrow = [], 0
    for a, b in zip_longest(_digits(left), _digits(right), fillvalue=0):
        lent = 10 if a < b + borrow else 0
        columns.append(f"{a + lent}-{b}-{borrow}={a + lent - b - borrow}")
        borrow = lent // 10
    return columns


def _product(left: int, digit: int) -> list[str]:
    columns, carry = [], 0
    for a in _digits(left):
        total = a * digit + carry
        columns.append(f"{a}*{digit}+{carry}={total}")
        carry = total // 10
    return columns


def _long_product(left: int, right: int, name: str) -> tuple[str, int]:
    """Write a line for each digit of `right`, and add the parts, the higher ones moved left; also the product."""
    text, total = f"{left}*{right}\n", 0
    for place, digit in enumerate(_digits(right)):
        lines, part = worked(left, "*", digit)
        text += lines
        if place:
            lines, total = worked(total, "+", part * 10**place, name)
            text += lines
        else:
            total = part
    return text, total
