"""Record of what was sent of an answer, and what of another stream of the same answer is new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fastslow.output import Decided, Piece
from fastslow.request.resume import ResumeState


@dataclass(slots=True)
class SentChoice:
    """Record of what was sent of one of n answers. Of texts only the length is known."""

    tokens: list[int] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    text: int = 0
    reasoning: int = 0
    decided: Decided | None = None
    first: float | None = None  # when its first token was sent
    stopped: int | None = None  # tokens after which its caller closed the thought
    # how much of it the present stream has brought, where it is not the first one
    came_tokens: int = 0
    came_text: int = 0
    came_reasoning: int = 0


class OtherAnswer(Exception):
    """A stream that should continue an answer has other tokens than those that were sent."""


class SentPieces:
    """Passes the pieces of several streams of one answer on as if they were one stream. A stream that continues an
    answer begins with all that was sent of it, in pieces of any size. Each character, token, source and
    log-probability is passed on once."""

    def __init__(self) -> None:
        self.choices: dict[int, SentChoice] = {}
        self._first = True  # no stream was left: there is nothing to cut

    def begin_again(self) -> None:
        """The next pieces are those of another stream."""
        self._first = False
        for sent in self.choices.values():
            sent.came_tokens = sent.came_text = sent.came_reasoning = 0

    @property
    def tokens(self) -> int:
        """Tokens that were sent, of all answers."""
        return sum(len(sent.tokens) for sent in self.choices.values())

    @property
    def answered(self) -> ResumeState:
        """From where another engine continues."""
        each = [self.choices.get(n, SentChoice()) for n in range(max(self.choices, default=-1) + 1)]
        return ResumeState(
            tokens=[list(one.tokens) for one in each],
            decided=[one.decided for one in each],
            stopped=[one.stopped for one in each],
        )

    def stopped(self, n: int) -> bool:
        """Tell whether its engine said of all n answers where their caller had closed their thoughts."""
        each = [self.choices.get(index) for index in range(n)]
        return all(one is not None and one.stopped is not None for one in each)

    def take(self, piece: Piece, now: float) -> Piece | None:
        """Return what is new of a piece, for the caller to send; None: nothing is. A piece with the output is the
        caller's. OtherAnswer: it has other tokens."""
        sent = self.choices.setdefault(piece.index, SentChoice())
        if sent.decided is None:
            sent.decided = piece.decided
        sent.stopped = piece.stopped
        fresh = piece if self._first else _fresh(piece, sent)
        if not (self._first or fresh.text or fresh.reasoning or fresh.token_ids):
            return None
        if sent.first is None and fresh.token_ids:
            sent.first = now
        sent.tokens += fresh.token_ids
        sent.sources += fresh.sources
        sent.text += len(fresh.text)
        sent.reasoning += len(fresh.reasoning)
        return fresh


def _fresh(piece: Piece, sent: SentChoice) -> Piece:
    """A piece without what was sent."""
    known = sent.tokens[sent.came_tokens : sent.came_tokens + len(piece.token_ids)]
    if piece.token_ids[: len(known)] != known:
        raise OtherAnswer
    text = piece.text[max(0, sent.text - sent.came_text) :]
    reasoning = piece.reasoning[max(0, sent.reasoning - sent.came_reasoning) :]
    sent.came_tokens += len(piece.token_ids)
    sent.came_text += len(piece.text)
    sent.came_reasoning += len(piece.reasoning)
    return replace(
        piece,
        text=text,
        reasoning=reasoning,
        token_ids=piece.token_ids[len(known) :],
        logprobs=None if piece.logprobs is None else piece.logprobs[len(known) :],
        sources=piece.sources[len(known) :],
    )


def whole_sources(sent: SentChoice | None, sources: Sequence[str]) -> list[str]:
    """Of a whole answer: as they were sent, then those of the stream that ended it."""
    known = [] if sent is None else sent.sources
    return [*known, *sources[len(known) :]]
