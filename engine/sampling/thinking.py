"""What a thought may do next: go on, hear a warning, or be closed. A function of the text, at every node of a draft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, Self

from fastslow.engine.sampling.confidence import AnswerProbe
from fastslow.engine.sampling.repeats import RepeatFinder, Repeats
from fastslow.engine.text.thought import TagTokens, begun
from fastslow.engine.types import LogitBoost, OneHot

FURTHEST = 64  # tokens that one step may add: most nodes of a draft
Ending = Literal["budget", "turn", "room", "loop", "confident", "caller"]
"""Why a thought was closed for the model."""
Ended = Literal["model", Ending]
MARKS = (b".", b"!", b"?", *(mark.encode() for mark in "。！？"))  # that end a sentence


class Thought(NamedTuple):
    """The thought that a text ends in, as far as a policy may know it."""

    spent: int  # tokens that began between the tags, over all thoughts of the answer
    made: int = 0  # tokens of the answer so far, tags and all that was put in included
    closing: int = 1  # tokens that closing it takes, at most
    repeats: Repeats = Repeats()  # of this thought
    paused: bool = False  # its last token ended a sentence, and no warning came yet


class ThinkingPolicy(Protocol):
    """Decides what a thought does next. A pure function of the thought."""

    @property
    def repeats(self) -> bool:
        """Whether it looks at them."""

    def judge(self, thought: Thought) -> Ending | None:
        """Why the thought is to be closed now; None = it is not."""

    def warns(self, thought: Thought, size: int) -> bool:
        """Whether a warning of `size` tokens is put in now."""

    def circles(self, repeats: Repeats) -> bool:
        """Whether an answer goes round in circles."""

    def lift(self, spent: int) -> float:
        """What is added to the closing tag's logit after `spent` tokens; 0 = nothing."""

    def lifts(self, spent: range) -> bool:
        """Whether `lift` is other than 0 anywhere in the range."""


class Steering(NamedTuple):
    """What may be done to the thoughts of an answer. Nothing is, by default."""

    policy: ThinkingPolicy | None = None  # None = thoughts are only counted
    closing: tuple[int, ...] = ()  # tokens of the closing phrase and tag; () = the tag alone
    warning: tuple[int, ...] = ()  # tokens of the warning
    # end tokens that close a thought instead, and do not come before something was answered
    ends: frozenset[int] = frozenset()
    # tokens of the answer, of which a closing phrase leaves one; None = it need not
    room: int | None = None
    every: int | None = None  # tokens of thought, after which `probe` asks
    probe: AnswerProbe | None = None
    cut: int | None = None  # tokens of thought after which it was closed, for this reason
    cut_by: Ending = "caller"


FREE = Steering()
NONE: frozenset[int] = frozenset()


class Outcome(NamedTuple):
    """What a whole text came to."""

    spent: int  # tokens of thought
    ended: Ended | None  # what ended the latest thought
    open: bool  # whether one is still open
    put_in: int  # tokens that the model did not choose: warnings, closing phrases and tags


class _Piece(NamedTuple):
    """A token in whose bytes a tag may have begun."""

    data: bytes
    token: int
    counted: bool


class _State(NamedTuple):
    """What has to be known of a text to take its next token."""

    thinking: bool
    made: int = 0  # tokens of the answer
    spent: int = 0  # tokens that began inside a thought and were not forced
    put_in: int = 0  # tokens that were forced
    tail: tuple[_Piece, ...] = ()
    todo: tuple[int, ...] = ()  # next tokens, which are forced
    ending: Ending | None = None  # why they are; None: they are a warning
    said: bool = False  # whether a closing phrase was begun
    warned: bool = False
    digit: bool = False  # the text ends in one
    asks: bool = False  # the probe asks here
    blank: bool = False  # a thought was closed, and nothing but blanks came since
    ended: Ended | None = None  # what closed the latest thought
    repeats: Repeats = Repeats()  # of the thought or the answer that the text ends in


class Thinking:
    """One request's thinking: counts its tokens, warns, and ends it where the policy says so.

    All is a function of the text. A thought ends with the tokens of the closing phrase and tag, which
    are forced, as those of a warning are; these do not count, and neither do tags. Drafts need no rule: a forced
    token has probability 1, wherever in a tree it stands.

    The phrase and the warning come once in an answer: a later thought is ended by the tag alone. Where the model
    has begun a tag of several tokens, only the rest of the tag is forced.

    Args:
        tags: the model's; None = it does not think.
        opened: the answer begins inside a thought.
        prompt_length: tokens before the answer.
        steering: what may be done to its thoughts.
    """

    def __init__(
        self,
        tags: TagTokens | None,
        opened: bool,
        prompt_length: int,
        steering: Steering = FREE,
    ) -> None:
        self._tags = tags
        self._steering = steering
        self._policy = steering.policy
        self._finder = RepeatFinder() if self._policy and self._policy.repeats else None
        self._close = () if tags is None else tags.close_ids
        self._opened = opened
        self._prompt_length = prompt_length
        self._read = prompt_length
        self._state = self._judged(_State(opened), False)
        self._drafts: dict[tuple[int, ...], _State] = {(): self._state}

    @property
    def bounded(self) -> bool:
        """Whether tokens may be forced."""
        cut, every = self._steering.cut, self._steering.every
        return self._policy is not None or cut is not None or every is not None

    def at(self, tokens: Sequence[int], drafted: Sequence[int]) -> OneHot | LogitBoost | None:
        if not self.bounded:
            return None
        state = self._after(tokens, tuple(drafted))
        if state.todo:
            return OneHot(state.todo[0])
        by = self._policy.lift(state.spent) if self._policy and state.thinking else 0.0
        return LogitBoost(self._rest_of_tag(state)[0], by) if by else None

    def no_end(
        self, tokens: Sequence[int], drafted: Sequence[int]
    ) -> tuple[frozenset[int], int | None]:
        ends, room = self._steering.ends, self._steering.room
        if not ends and room is None:
            return NONE, None
        state = self._after(tokens, tuple(drafted))
        if state.thinking:
            return ends, self._rest_of_tag(state)[0]
        ends = ends if state.blank else NONE
        if state.blank and room is not None and len(self._close) == 1:
            ends = ends.union(self._close)  # a tag of no thought, which the text does not show
        if self._tags is None or room is None or room - state.made > len(self._close) + 1:
            return ends, None
        text = b"".join(piece.data for piece in state.tail)  # a thought would be all that follows
        return ends | self._tags.opening(text), None

    def ahead(self, tokens: Sequence[int]) -> Sequence[int]:
        return self._after(tokens, ()).todo if self.bounded else ()

    def lifts(self, tokens: Sequence[int]) -> bool:
        if self._policy is None:
            return False
        spent = self._after(tokens, ()).spent
        return self._policy.lifts(range(spent, spent + FURTHEST + 1))

    def inside(self, tokens: Sequence[int], drafted: Sequence[int] = ()) -> bool:
        return self._after(tokens, tuple(drafted)).thinking

    def circles_at(self, tokens: Sequence[int], run: Sequence[int]) -> int | None:
        """After how many tokens of `run`, after `tokens`, the answer goes round in circles; None: it does not."""
        policy = self._policy
        if policy is None or self._finder is None:
            return None
        for size in range(1, len(run) + 1):
            state = self._after(tokens, tuple(run[:size]))
            if not state.thinking and policy.circles(state.repeats):
                return size
        return None

    def asks(self, tokens: Sequence[int]) -> AnswerProbe | None:
        """The probe that asks after `tokens` and was not told yet."""
        probe = self._steering.probe
        return probe if probe is not None and self._after(tokens, ()).asks else None

    def asks_at(self, tokens: Sequence[int], run: Sequence[int]) -> int | None:
        """After how many tokens of `run`, after `tokens`, the probe asks; None: it does not."""
        if self._steering.probe is None:
            return None
        sizes = range(1, len(run) + 1)
        return next((n for n in sizes if self._after(tokens, tuple(run[:n])).asks), None)

    def told(self, tokens: Sequence[int], settled: bool) -> None:
        """Whether the answer is settled where the probe asked, after `tokens`: then the thought is closed there."""
        if settled:
            self.close(tokens, "confident")
        self._state = self._state._replace(asks=False)
        self._drafts = {(): self._state}

    def close(self, tokens: Sequence[int], by: Ending = "caller") -> bool:
        """Have the thought that `tokens` end in closed from the next token on, as a used-up budget does.
        Later thoughts are closed as they open. Call it between two steps. False: there is no thought."""
        state = self._after(tokens, ())
        if not state.thinking:
            return False
        if not state.todo or state.ending is None:  # else it is being closed
            self._steering = self._steering._replace(cut=state.spent, cut_by=by)
            self._state = self._judged(state._replace(todo=(), asks=False), False)
            self._drafts = {(): self._state}
        return True

    def outcome(self, tokens: Sequence[int]) -> Outcome:
        """Of a text that ends, perhaps before what was read of it."""
        if len(tokens) < self._read:
            again = type(self)(self._tags, self._opened, self._prompt_length, self._steering)
            return again.outcome(tokens)
        state = self._after(tokens, ())
        return Outcome(state.spent, state.ended, state.thinking, state.put_in)

    def reopened(self) -> Self:
        """The same for a text that turned out to begin inside a thought, to count its tokens."""
        return type(self)(self._tags, True, self._prompt_length)

    def _after(self, tokens: Sequence[int], drafted: tuple[int, ...]) -> _State:
        if self._read < len(tokens):
            for token in tokens[self._read :]:
                self._state = read = self._step(self._state, token)
                if self._finder is not None:
                    self._state = read._replace(repeats=self._finder.commit(read.repeats))
            self._read = len(tokens)
            self._drafts = {(): self._state}
        state = self._drafts.get(drafted)
        if state is None:
            state = self._step(self._after(tokens, drafted[:-1]), drafted[-1])
            self._drafts[drafted] = state
        return state

    def _step(self, state: _State, token: int) -> _State:
        todo = state.todo
        forced = bool(todo) and token == todo[0]
        todo = todo[1:] if forced else ()  # under another mode other tokens may have come
        counted = state.thinking and not forced
        closes = forced and state.ending is not None
        state = state._replace(
            made=state.made + 1,
            spent=state.spent + counted,
            put_in=state.put_in + forced,
            todo=todo,
            said=state.said or closes,
            asks=False,
        )
        digit, blank = state.digit, state.blank
        data = b"" if self._tags is None else self._tags.spell(token)
        part = state.repeats.part
        if self._tags is not None:
            tag = self._tags.close if state.thinking else self._tags.open
            if state.tail or tag[:1] in data:
                state = state._replace(tail=(*state.tail, _Piece(data, token, counted)))
                state = self._past_tags(state, self._tags, state.ending if closes else "model")
        if blank and data.strip():
            state = state._replace(blank=False)
        if self._finder is not None and not forced and state.repeats.part == part:
            repeats = self._finder.after(state.repeats, token, state.made)
            state = state._replace(repeats=repeats)
        if not self.bounded or not state.thinking:
            return state
        paused = counted and (data.endswith(b"\n") or (not digit and data.rstrip().endswith(MARKS)))
        state = self._judged(state._replace(digit=data[-1:].isdigit()), paused)
        every = self._steering.every
        if every is None or not counted or state.spent % every or state.todo or state.tail:
            return state
        return state._replace(asks=self._steering.cut is None)

    def _past_tags(self, state: _State, tags: TagTokens, ended: Ended | None) -> _State:
        """The state after the tags that the latest token completes."""
        text = b"".join(piece.data for piece in state.tail)
        while tag := tags.close if state.thinking else tags.open:
            place = text.find(tag)
            if place < 0:
                break
            inside, begins = 0, 0  # counted tokens that began in the tag, so not in the thought
            for piece in state.tail:
                inside += piece.counted and begins >= place
                begins += len(piece.data)
            text = text[place + len(tag) :]
            state = state._replace(
                thinking=not state.thinking,
                spent=state.spent - inside,
                tail=(_Piece(text, -1, False),),
                blank=state.thinking and not text.strip(),
                ended=ended if state.thinking else state.ended,
                repeats=state.repeats.next_part(),
            )
        return state._replace(tail=_last(state.tail, len(begun(text, tag))))

    def _judged(self, state: _State, paused: bool) -> _State:
        """The state with the tokens that are forced now, if the policy ends the thought or warns."""
        if not self.bounded or not state.thinking or state.todo:
            return state
        closing, warning, room = self._steering.closing, self._steering.warning, self._steering.room
        if not closing or state.said or (room is not None and state.made + len(closing) >= room):
            closing = self._close
        paused = paused and bool(warning) and not state.warned and not state.tail
        thought = Thought(state.spent, state.made, len(closing), state.repeats, paused)
        cut = self._steering.cut
        ending = self._steering.cut_by if cut is not None and state.spent >= cut else None
        if ending is None and self._policy is not None:
            ending = self._policy.judge(thought)
            if ending is None and paused and self._policy.warns(thought, len(warning)):
                return state._replace(todo=warning, warned=True, ending=None)
        if ending is None:
            return state
        rest = self._rest_of_tag(state)
        return state._replace(todo=rest if len(rest) < len(self._close) else closing, ending=ending)

    def _rest_of_tag(self, state: _State) -> tuple[int, ...]:
        """The closing tag without the part of it that the text ends in."""
        whole = self._close
        said = tuple(piece.token for piece in state.tail)
        sizes = range(min(len(whole) - 1, len(said)), 0, -1)
        return next((whole[k:] for k in sizes if said[-k:] == whole[:k]), whole)


def _last(tail: tuple[_Piece, ...], size: int) -> tuple[_Piece, ...]:
    """The latest tokens that hold this many bytes."""
    first = len(tail)
    while size > 0:
        first -= 1
        size -= len(tail[first].data)
    return tail[first:]
