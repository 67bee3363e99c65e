"""Repeats of a text, word for word: counted token by token, for drafted tokens as for committed ones."""

from __future__ import annotations

from typing import NamedTuple

RUN = 8  # tokens that are looked up: fewer come again in any text


class Repeats(NamedTuple):
    """Tokens at the end of a part of a text that repeat earlier ones of that part."""

    stale: int = 0  # tokens since one that ended RUN tokens which had not come before
    lag: int = 0  # how far back the same tokens stand; 0 = nowhere
    run: int = 0  # how many tokens are the same there
    part: int = 0  # of the text
    recent: tuple[int, ...] = ()  # the latest tokens of the part, at most RUN
    fresh: tuple[tuple[tuple[int, ...], int], ...] = ()  # runs with their places, not committed yet

    def next_part(self) -> Repeats:
        """A new part begins, in which nothing has come."""
        return Repeats(part=self.part + 1, fresh=self.fresh)


class RepeatFinder:
    """Finds them for one text. It holds where each run of committed tokens came last."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, ...], int] = {}

    def after(self, before: Repeats, token: int, place: int) -> Repeats:
        """With one more token, which stands at this place."""
        recent = (*before.recent, token)[-RUN:]
        if len(recent) < RUN:
            return before._replace(recent=recent)
        key = (before.part, *recent)
        found = next((at for run, at in reversed(before.fresh) if run == key), self._last.get(key))
        lag = 0 if found is None else place - found
        run = (before.run + 1 if lag == before.lag else RUN) if lag else 0
        stale = before.stale + 1 if lag else 0
        return Repeats(stale, lag, run, before.part, recent, (*before.fresh, (key, place)))

    def commit(self, repeats: Repeats) -> Repeats:
        """The same once its tokens are committed."""
        self._last.update(repeats.fresh)
        return repeats._replace(fresh=())
