"""Where an answer ends: end tokens, stop strings, length. Accepted tokens are read one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fastslow.engine.params import SamplingParams
from fastslow.engine.text.detokenizer import Detokenizer, hold_back

Reason = Literal["stop", "length", "cancelled", "timeout", "error", "escalated"]


class Stopper:
    """One request's text as it grows, and why it ended.

    Args:
        params: stop strings and min_tokens.
        end_ids: token ids that end the answer.
        room: most tokens that may be answered.
        detokenizer: a fresh one, or None for a model without a tokenizer (then no text).
    """

    def __init__(
        self,
        params: SamplingParams,
        end_ids: frozenset[int],
        room: int,
        detokenizer: Detokenizer | None,
    ) -> None:
        self._params = params
        self._end_ids = end_ids
        self._room = room
        self._detokenizer = detokenizer
        self._count = 0
        self._told = 0  # characters already given to a stream
        self.text = ""
        self.reason: Reason | None = None
        self.matched: str | int | None = None  # the stop string or end token that was met

    def scan(self, tokens: Sequence[int]) -> int:
        """Take tokens in order until the answer is over; returns how many of them belong to it."""
        for kept, token in enumerate(tokens, 1):
            self._count += 1
            if token in self._end_ids and self._count > self._params.min_tokens:
                self._end("stop", token)
            else:
                self._read(token)
                if self.reason is None and self._count >= self._room:
                    self._end("length", None)
            if self.reason is not None:
                return kept
        return len(tokens)

    def finish(self, reason: Reason) -> None:
        """End it for another reason: cancelled, timeout, escalated, or an error."""
        if self.reason is None:
            self._end(reason, None)

    def news(self) -> str:
        """Text not streamed yet, without a tail that may turn out to be a stop string."""
        end = len(self.text)
        if self.reason is None:
            end -= hold_back(self.text, self._params.stop)
        fresh = self.text[self._told : end]
        self._told = max(self._told, end)
        return fresh

    def _read(self, token: int) -> None:
        if self._detokenizer is not None:
            self._extend(self._detokenizer.push([token]))

    def _extend(self, fresh: str) -> None:
        if not fresh:
            return
        before = len(self.text)
        self.text += fresh
        if self._count < self._params.min_tokens:
            return
        hits = []
        for stop in self._params.stop:
            place = self.text.find(stop, max(0, before - len(stop) + 1))
            if place >= 0:
                hits.append((place, stop))
        if hits:
            place, stop = min(hits)
            self.text = self.text[:place]
            self.reason, self.matched = "stop", stop

    def _end(self, reason: Reason, matched: str | int | None) -> None:
        self.reason, self.matched = reason, matched
        if self._detokenizer is not None:
            self.text += self._detokenizer.finish()
