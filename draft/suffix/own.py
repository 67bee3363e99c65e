"""A request's own text as a source."""

from __future__ import annotations

from collections.abc import Sequence

from fastslow.draft.suffix.chains import Chains
from fastslow.draft.suffix.found import Found

FIRST_SIZE = 1024


class OwnText:
    """Indexes one text as it grows."""

    def __init__(self) -> None:
        self._tokens: Sequence[int] = ()
        self._read = 1  # places below it are indexed
        self._chains = Chains(FIRST_SIZE)

    def read(self, tokens: list[int]) -> None:
        """Take the text as it is now: all that there was, and perhaps more.

        The place at its very end is left out: nothing follows it yet.
        """
        self._tokens = tokens
        if len(tokens) > self._chains.size:
            # Sizes double, so a token is indexed again a few times at most.
            self._chains = Chains(1 << (len(tokens) - 1).bit_length())
            self._read = 1
        for place in range(self._read, len(tokens)):
            self._chains.add(tokens, place)
        self._read = max(self._read, len(tokens))

    def find(self, recent: list[int], ahead: int) -> Found:
        """See `Source.find`. A run that reaches the end of the text goes on as a loop would."""
        length, places, whole = self._chains.find(self._tokens, recent, 1)
        return Found(length, [self._run(place, ahead) for place in places], whole)

    def _run(self, place: int, ahead: int) -> list[int]:
        run = list(self._tokens[place : place + ahead])
        if len(run) < ahead:
            run = (run * (ahead // len(run) + 1))[:ahead]
        return run
