"""Start of an answer under a grammar: at once, or after a thought."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fastslow.engine.text.thought import BODY, CHANNEL, END, MARKS, START, TagTokens
from fastslow.engine.text.vocabulary import Tokenizer, begun

NEWLINES = 4  # that may stand between a thought and its answer; the answer's text is without them
EMPTY, UNFIT = -1, -2  # in `Options.remainder_tokens`
Ids = NDArray[np.int64]
Kind = Literal["head", "thought", "gap", "turn", "header", "body"]


class ScanState(NamedTuple):
    """A place in the text before an answer."""

    # head: nothing was said; thought: between the tags; gap: after them; in channels a turn has a
    # header and a body
    kind: Kind
    tail: bytes = b""  # said of a tag that may have begun, or of a header
    left: int = 0  # blanks that may still be left out before the answer

    @property
    def free(self) -> bool:
        """True where any text may follow."""
        return self.kind not in ("head", "gap")


class Options(NamedTuple):
    """Options of a place: whether the answer may begin, and which tokens may come."""

    answer: bool  # it may begin here
    tokens: Ids  # [n] may come where their remainders fit; in free text all others may come, too
    remainder_tokens: Ids  # [n] each spells what of a token belongs to the answer; or EMPTY, UNFIT


class AnswerStart(Protocol):
    """Finds where the answer begins, token by token."""

    first: ScanState | None  # None: it begins at once

    def step(self, place: ScanState, token: int) -> ScanState | int | None:
        """The place after one more token, or where the answer begins in it, the token that spells only
        what belongs to the answer. None: it does not fit."""

    def options(self, place: ScanState) -> Options:
        """Return the options of a place."""


class Spellings:
    """The tokens of a model by their bytes, as far as thoughts and blanks need them. Made once. `columns`: of
    the model's logits; tokens beyond are never said."""

    def __init__(self, tokenizer: Tokenizer, tags: TagTokens | None, columns: int) -> None:
        self.spell = tokenizer.token_bytes if tags is None else tags.spell
        self.tags = tags
        each = [self.spell(token) for token in range(min(tokenizer.vocab_size, columns))]
        ids: dict[bytes, int] = {}
        for token, data in enumerate(each):
            if token not in tokenizer.special_ids:
                ids.setdefault(data, token)
        self.blanks = {
            blank: [t for t, data in enumerate(each) if data.startswith(blank)]
            for blank in (b" ", b"\n")
        }
        close, opening = (b"", b"") if tags is None else (tags.close, tags.open)
        self.closing = [t for t, data in enumerate(each) if _goes_past(data, close)]
        self.opening = [t for t, data in enumerate(each) if data and data in opening]
        known = (each[t] for t in (*self.closing, *self.blanks[b" "], *self.blanks[b"\n"]))
        ends = {data[i:] for data in known for i in range(1, len(data))}
        self._ids = {data: ids[data] for data in ends if data in ids}

    def remainder_token(self, rest: bytes) -> int:
        """The token that spells this end of another token."""
        return EMPTY if not rest else self._ids.get(rest, UNFIT)


class AtOnce:
    """The answer comes at once, or after blanks that do not belong to it: at most `most`."""

    def __init__(self, spellings: Spellings, most: int = 0, blank: bytes = b" ") -> None:
        self._spellings = spellings
        self._blank = blank
        self._known: dict[int, Options] = {}
        self.first = ScanState("gap", left=most) if most else None

    def step(self, place: ScanState, token: int) -> ScanState | int | None:
        data = self._spellings.spell(token)
        blank = place.left and data.startswith(self._blank)
        return self.past(data, place.left) if blank else token

    def past(self, data: bytes, left: int) -> ScanState | int | None:
        """`step` for the end of a token, of which `left` blanks may be left out."""
        rest = data.lstrip(self._blank)
        left -= len(data) - len(rest)
        if left < 0:
            return None
        if not rest:
            return ScanState("gap", left=left)
        token = self._spellings.remainder_token(rest)
        return None if token == UNFIT else token

    def options(self, place: ScanState) -> Options:
        if place.left not in self._known:
            tokens = self._spellings.blanks[self._blank] if place.left else []
            self._known[place.left] = _options(True, {t: self.step(place, t) for t in tokens})
        return self._known[place.left]


class BehindTags:
    """The answer comes after a thought between tags, or at once if the model opens none. `opened`: the text
    begins inside the thought. `spaces`: most of them before an answer without a thought."""

    def __init__(self, spellings: Spellings, opened: bool, spaces: int = 0) -> None:
        assert spellings.tags is not None, "a model without tags does not think"
        self._spellings = spellings
        self._open, self._close = spellings.tags.open, spellings.tags.close
        self._spaces = AtOnce(spellings)
        self._newlines, self._blanks = AtOnce(spellings, blank=b"\n"), NEWLINES
        self._known: dict[ScanState, Options] = {}
        first = ScanState("thought") if opened else ScanState("head", left=spaces)
        self.first: ScanState | None = first

    def step(self, place: ScanState, token: int) -> ScanState | int | None:
        if place.kind == "gap":
            return self._newlines.step(place, token)
        data = self._spellings.spell(token)
        said = place.tail + data
        if place.kind == "thought":
            return self._thought(said)
        if data and said.startswith(self._open):
            return self._thought(said[len(self._open) :])
        if data and self._open.startswith(said):
            return place._replace(tail=said)
        if place.tail:
            return None
        found = self._spaces.step(place, token)
        return found._replace(kind="head") if isinstance(found, ScanState) else found

    def options(self, place: ScanState) -> Options:
        if place.kind == "gap":
            return self._newlines.options(place)
        if place not in self._known:
            self._known[place] = self._leading(place)
        return self._known[place]

    def _leading(self, place: ScanState) -> Options:
        spellings, tail = self._spellings, place.tail
        if place.kind == "thought":
            closing = {token: self.step(place, token) for token in spellings.closing}
            ends = {token: to for token, to in closing.items() if not isinstance(to, ScanState)}
            return _options(False, ends)
        blanks = spellings.blanks[b" "] if place.left and not tail else []
        opening = (t for t in spellings.opening if self._open.startswith(tail + spellings.spell(t)))
        found = {token: self.step(place, token) for token in (*blanks, *opening)}
        return _options(place.kind == "head" and not tail, found)

    def _thought(self, said: bytes) -> ScanState | int | None:
        """The place after these bytes, which were said in a thought."""
        end = said.find(self._close)
        if end < 0:
            return ScanState("thought", begun(said, self._close))
        return self._newlines.past(said[end + len(self._close) :], self._blanks)


class BehindAnalysis(BehindTags):
    """The answer is all messages after the analysis, with their headers: a call is a message too."""

    def __init__(self, spellings: Spellings, opened: bool) -> None:
        super().__init__(spellings, opened)
        self._close, self._blanks = END.encode(), 0


class BehindChannels:
    """The answer is the body of a turn in channel "final", or without a channel. `prompt`: text that the
    prompt ends in, with special tokens."""

    def __init__(self, spellings: Spellings, prompt: str) -> None:
        self._spellings = spellings
        self._marks = {mark.encode(): mark for mark in MARKS}
        self.first: ScanState | None = self._at_end(prompt)

    def step(self, place: ScanState, token: int) -> ScanState | int | None:
        if place.kind == "gap":
            return token
        data = self._spellings.spell(token)
        mark = self._marks.get(data)
        if mark == BODY and place.kind == "header":
            return self._body(place.tail.decode("utf-8", "replace"))
        if mark == START or (mark == CHANNEL and place.kind != "header"):
            return ScanState("header", data)
        if place.kind == "header":
            return place._replace(tail=place.tail + data)
        return ScanState("turn") if mark == END else place

    def options(self, place: ScanState) -> Options:
        return _options(place.kind == "gap", {})

    def _body(self, header: str) -> ScanState:
        channel = header.rpartition(CHANNEL)[2].split() if CHANNEL in header else []
        return ScanState("gap") if channel[:1] in ([], ["final"]) else ScanState("body")

    def _at_end(self, prompt: str) -> ScanState | None:
        """The place that a prompt ends in."""
        last = max(MARKS, key=prompt.rfind)
        place, start = prompt.rfind(last), max(prompt.rfind(START), 0)
        if place < 0:
            return None
        if last == END:
            return ScanState("header")
        if last != BODY:
            return ScanState("header", prompt[start:].encode())
        found = self._body(prompt[start:place])
        return None if found.kind == "gap" else found


def _options(answer: bool, found: Mapping[int, ScanState | int | None]) -> Options:
    """`found`: where each of the tokens leads, as `AnswerStart.step` says it."""
    remainders = [
        EMPTY if isinstance(to, ScanState) else UNFIT if to is None else to for to in found.values()
    ]
    return Options(answer, np.array(list(found), np.int64), np.array(remainders, np.int64))


def _goes_past(data: bytes, close: bytes) -> bool:
    """Tell whether a token may hold the end of the closing tag, and more after it."""
    if not close:
        return False
    ends = (data.startswith(close[-k:]) and len(data) > k for k in range(1, len(close)))
    return close in data or any(ends)
