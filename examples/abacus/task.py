"""A task, and how an answer to it is graded."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

SHARE = 32  # one prompt in 32 is never trained on
_NUMBER = re.compile(r"-?\d+")


@dataclass(frozen=True, slots=True)
class Task:
    """A question, its answer, and what kind of question it is."""

    prompt: str
    answer: str
    kind: str
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


def result(left: int, sign: str, right: int) -> int:
    """The value of `left sign right`. ValueError: it is below zero."""
    if sign == "-" and right > left:
        raise ValueError(f"{left}{sign}{right} is below zero")
    return {"+": left + right, "-": left - right, "*": left * right}[sign]
