"""How much of a text's end may be the beginning of something searched for."""

from __future__ import annotations

from collections.abc import Iterable


def hold_back(text: str, stops: Iterable[str]) -> int:
    """Number of characters at the end of `text` that may be the beginning of one of `stops`.

    The longest such end; a whole stop string is not a beginning of itself. A stream may emit
    `text[:len(text) - hold_back(text, stops)]` and no stop string will begin inside it, provided
    `text` holds none already.
    """
    return max((_overlap(text, stop) for stop in stops), default=0)


def _overlap(text: str, stop: str) -> int:
    longest = min(len(text), len(stop) - 1)
    lengths = range(longest, 0, -1)
    return next((k for k in lengths if text.endswith(stop[:k])), 0)
