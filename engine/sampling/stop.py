"""Stops of an answer: end tokens, stop strings, length. Accepted tokens are read one by one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from fastslow.engine.params import SamplingParams
from fastslow.engine.text.vocabulary import Detokenizer

Reason = Literal["stop", "length", "loop", "cancelled", "timeout", "error", "escalated"]


class StopStrings:
    """Looks for strings in a text that grows: the automaton of Aho and Corasick (1975).

    A state is the longest end of the text that begins one of the strings; 0 is none. A character of
    text costs the same however many strings there are, and however long.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._next: dict[tuple[int, str], int] = {}
        self.found: dict[int, str] = {}  # the longest string that is whole at a state
        depth = [0]
        for string in strings:
            state = 0
            for place, letter in enumerate(string, 1):
                after = self._next.setdefault((state, letter), len(depth))
                if after == len(depth):
                    depth.append(place)
                state = after
            self.found[state] = string
        begun = {state for state, _ in self._next}
        # By state, how many characters at the text's end may begin a string, without a whole one.
        self.held = list(depth)
        self._shorter = [0] * len(depth)  # the next longest such end of the text
        for (before, letter), state in sorted(self._next.items(), key=lambda edge: depth[edge[1]]):
            shorter = self.step(self._shorter[before], letter) if before else 0
            self._shorter[state] = shorter
            if shorter in self.found:
                self.found.setdefault(state, self.found[shorter])
            if state not in begun:
                self.held[state] = self.held[shorter]

    def step(self, state: int, letter: str) -> int:
        """The state after one more character."""
        while state and (state, letter) not in self._next:
            state = self._shorter[state]
        return self._next.get((state, letter), 0)


stop_strings = lru_cache(8)(StopStrings)  # shared by the answers and calls that name the same


class Stopper:
    """Text of a request as it grows, and why it ended. `room`: most tokens that may be answered. Without a
    detokenizer there is no text."""

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
        self._strings = stop_strings(params.stop) if params.stop else None
        self._state = 0  # of `_strings`
        self._length = 0  # characters so far
        self._text: list[str] = []  # joined on demand: to append to a text would copy it each time
        self._unnotified: list[str] = []  # not given to a stream yet
        self.reason: Reason | None = None
        self.matched: str | int | None = None  # the stop string or end token that was met

    @property
    def text(self) -> str:
        """The answer so far, without the stop string."""
        if len(self._text) > 1:
            self._text = ["".join(self._text)]
        return self._text[0] if self._text else ""

    def scan(self, tokens: Sequence[int], whole_at: int | None = None) -> int:
        """Take tokens in order until the answer is over, at the latest after `whole_at` of them. Returns how
        many of them belong to it."""
        for kept, token in enumerate(tokens, 1):
            self._count += 1
            whole = kept == whole_at
            if token in self._end_ids and (whole or self._count > self._params.min_tokens):
                self._end("stop", token)
            else:
                self._read(token)
                if self.reason is None and whole:
                    self._end("stop", None)
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
        fresh = "".join(self._unnotified)
        held = self._strings.held[self._state] if self._strings and self.reason is None else 0
        end = len(fresh) - held
        self._unnotified = [fresh[end:]]
        return fresh[:end]

    def _read(self, token: int) -> None:
        fresh = self._detokenizer.push([token]) if self._detokenizer is not None else ""
        if not fresh:
            return
        self._text.append(fresh)
        self._unnotified.append(fresh)
        before, self._length = self._length, self._length + len(fresh)
        if self._strings is None:
            return
        hits = []
        for place, letter in enumerate(fresh, before + 1):
            self._state = self._strings.step(self._state, letter)
            if (stop := self._strings.found.get(self._state)) is not None:
                hits.append((place - len(stop), stop))
        if hits and self._count >= self._params.min_tokens:
            place, stop = min(hits)
            self.reason, self.matched = "stop", stop
            text = self.text
            self._unnotified = ["".join(self._unnotified)[: place - len(text)]]
            self._text, self._length = [text[:place]], place

    def _end(self, reason: Reason, matched: str | int | None) -> None:
        self.reason, self.matched = reason, matched
        if self._detokenizer is not None:
            rest = self._detokenizer.finish()
            self._text.append(rest)
            self._unnotified.append(rest)
