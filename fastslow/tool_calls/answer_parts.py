"""An answer as parts in a row: thought, text, calls. Each protocol of chats writes it in its own words."""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from fastslow.output import Completion, Piece
from fastslow.tool_calls.parser import Event, ToolParser

Kind = Literal["thought", "text", "call"]
Verb = Literal["begun", "more", "ended"]
LETTERS = string.ascii_letters + string.digits


@dataclass(slots=True)
class AnswerPart:
    """A run of one kind, or one call. index: of the part in the answer. key: names it; no other part has the same.
    id, name, number: of a call, of the function that it calls, and of the call among all calls."""

    kind: Kind
    index: int
    id: str = ""
    name: str = ""
    number: int = 0
    key: str = field(default_factory=lambda: secrets.token_hex(12))
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it so far; a call's are its arguments."""
        return "".join(self.texts)


Change = tuple[Verb, AnswerPart, str]
"""A part begins, grows by a text, or ends."""


class AnswerParts:
    """The parts of one answer, from pieces that are cut in any way. parser: finds calls in the text; None: there are
    none. shows_thought: else the thought is left out. parts: so far."""

    def __init__(self, parser: ToolParser | None, shows_thought: bool) -> None:
        self.parts: list[AnswerPart] = []
        self._parser, self._shows_thought = parser, shows_thought
        self._open: AnswerPart | None = None
        self._came = False  # any of it in pieces

    @property
    def calls(self) -> list[AnswerPart]:
        return [part for part in self.parts if part.kind == "call"]

    def text_of(self, kind: Kind) -> str:
        """All parts of a kind together."""
        return "".join([part.text for part in self.parts if part.kind == kind])

    def push(self, piece: Piece) -> list[Change]:
        """Return the changes that a piece of the answer makes; where it is the last one, `finish` is due."""
        self._came = self._came or bool(piece.token_ids)
        return self._take(piece.reasoning, piece.text)

    def finish(self, answer: Completion) -> list[Change]:
        """The rest, at the end; all of it, where nothing came in pieces."""
        changes = [] if self._came else self._take(answer.reasoning, answer.text)
        return changes + self.end()

    def end(self) -> list[Change]:
        """Return the changes that are left when no more pieces come."""
        changes = [] if self._parser is None else self._found(self._parser.finish())
        return changes + self._end()

    def _take(self, thought: str, text: str) -> list[Change]:
        self._came = self._came or bool(thought or text)
        changes = self._more("thought", thought) if thought and self._shows_thought else []
        if self._parser is not None:
            return changes + self._found(self._parser.push(text))
        return changes + self._more("text", text) if text else changes

    def _found(self, events: Sequence[Event]) -> list[Change]:
        changes: list[Change] = []
        for kind, text in events:
            if kind == "call":
                changes += self._begin("call", text)
            else:
                changes += self._more("text" if kind == "text" else "call", text)
        return changes

    def _more(self, kind: Kind, text: str) -> list[Change]:
        begun = [] if self._open is not None and self._open.kind == kind else self._begin(kind)
        part = self.parts[-1]
        part.texts.append(text)
        return [*begun, ("more", part, text)]

    def _begin(self, kind: Kind, name: str = "") -> list[Change]:
        ended = self._end()
        id = new_id(self._parser.form.id_length) if name and self._parser else ""
        self._open = AnswerPart(kind, len(self.parts), id, name, len(self.calls))
        self.parts.append(self._open)
        return [*ended, ("begun", self._open, "")]

    def _end(self) -> list[Change]:
        if self._open is None:
            return []
        ended, self._open = self._open, None
        return [("ended", ended, "")]


def new_id(length: int) -> str:
    """A name for a call that no other one has; `length`: exactly this many letters, for templates that insist."""
    if length:
        return "".join(secrets.choice(LETTERS) for _ in range(length))
    return f"call_{secrets.token_hex(12)}"
