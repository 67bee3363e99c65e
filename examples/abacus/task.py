"""One task, and how an answer to it is graded."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass

SHARE = 32  # one prompt in so many is never trained on
_NUMBER = re.compile(r"-?\d+")


@dataclass(frozen=True, slots=True)
class Task:
    """A question, its answer, what kind of question it is, and the steps that lead there."""

    prompt: str
    answer: str
    kind: str
    steps: str

    def line(self) -> str:
        """The task as a line of graded JSONL."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @property
    def held_out(self) -> bool:
        """Whether the task belongs to the tests: decided by a hash of its prompt alone, so that no
        seed of the training stream can bring it."""
        digest = hashlib.blake2b(self.prompt.encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") % SHARE == 0


def graded(text: str, answer: str) -> bool:
    """Whether the last number in `text` is `answer`."""
    found = _NUMBER.findall(text)
    return bool(found) and found[-1] == answer
