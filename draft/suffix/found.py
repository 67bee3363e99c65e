"""What a source of earlier text answers when it is asked where a text's end stood before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

LONGEST = 32  # tokens of a match that are told apart; longer ones count as equally long
MOST = 8  # places that a source looks at


class Found(NamedTuple):
    """The places before which the longest end of a text stood before."""

    length: int = 0  # tokens that match before each of them, at most LONGEST
    places: Sequence[int] = ()  # the source's own numbers
    whole: bool = True  # False: there are more such places


NOTHING = Found()


class Source(Protocol):
    """Text in which the longest match is looked up."""

    def find(self, recent: list[int]) -> Found:
        """Where the longest end of `recent`, the last LONGEST tokens of a text, stood before: MOST
        places at most."""

    def run(self, place: int, ahead: int) -> list[int]:
        """Up to `ahead` tokens that followed at a place just found."""
