"""What a source of earlier text answers when it is asked where a text's end stood before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

LONGEST = 32  # tokens of a match that are told apart; longer ones count as equally long
MOST = 8  # places that a source looks at


class Found(NamedTuple):
    """What followed the longest end of a text wherever it stood before."""

    length: int = 0  # tokens that match, at most LONGEST
    runs: Sequence[Sequence[int]] = ()  # tokens that came next, for each place that was looked at
    whole: bool = True  # False: there are more such places


NOTHING = Found()


class Source(Protocol):
    """Text in which the longest match is looked up."""

    def find(self, recent: list[int], ahead: int) -> Found:
        """Where the longest end of `recent`, the last tokens of a text, stood before: MOST places
        at most, and up to `ahead` tokens that followed at each."""
