"""Steering of a thought: it goes on, hears a warning or is closed. A function of the text, at every node of a draft."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from fastslow.engine.sampling.confidence import AnswerProbe
from fastslow.engine.sampling.repeats import RepeatFinder, Repeats
from fastslow.engine.sampling.thinking_limits import Ended, Ending, ThinkingLimits
from fastslow.engine.text.thought import TagTokens
from fastslow.engine.text.vocabulary import begun
from fastslow.engine.types import LogitBoost, OneHot

FURTHEST = 64  # tokens that one step may add: most nodes of a draft
MARKS = (b".", b"!", b"?", *(mark.encode() for mark in "。！？"))  # that end a sentence


class Steering(NamedTuple):
    """Settings that steer the thoughts of an answer. By default nothing does."""

    policy: ThinkingLimits | None = None  # None = thoughts are only counted
    closing: tuple[int, ...] = ()  # tokens of the closing phrase and tag; () = the tag alone
    warning: tuple[int, ...] = ()  # tokens of the warning
    # end tokens that close a thought instead, and do not come before something was answered
    ends: frozenset[int] = frozenset()
    # tokens of the answer, of which a closing phrase leaves one; None = it need not
    room: int | None = None
    every: int | None = None  # tokens of thought, after which `probe` asks
    probe: AnswerProbe | None = None


FREE = Steering()
NONE: frozenset[int] = frozenset()


class Outcome(NamedTuple):
    """Outcome of the thoughts of a whole text."""

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
    """Facts of a text that are needed to take its next token."""

    thinking: bool
    made: int = 0  # tokens of the answer
    spent: int = 0  # tokens that began inside a thought and do not close it
    put_in: int = 0  # tokens that were forced
    tail: tuple[_Piece, ...] = ()
    todo: tuple[int, ...] = ()  # next tokens, which are forced
    ending: Ended | None = None  # why they are; None: they are a warning
    cut: Ending | None = None  # why thoughts are closed from here on
    said: bool = False  # whether a closing phrase was begun
    warned: bool = False
    digit: bool = False  # the text ends in one
    asks: bool = False  # the probe asks here
    blank: bool = False  # a thought was closed, and nothing but blanks came since
    ended: Ended | None = None  # what closed the latest thought
    repeats: Repeats = Repeats()  # of the thought or the answer that the text ends in

    @property
    def due(self) -> bool:
        """True where a warning may be begun here, of which nothing but blanks was said."""
        return bool(self.todo) and self.ending is None and not self.warned


class Thinking:
    """Thinking of one request: counts its tokens, warns, and ends it where the policy says so.

    All is a function of the text. A thought ends with the tokens of the closing phrase and tag, which
    are forced and do not count; neither do tags. Drafts need no rule: a forced token has probability 1, wherever in a
    tree it stands. The tokens of a warning are forced, too, and count; where the model is about to close its thought,
    none is begun.

    The phrase and the warning come once in an answer: a later thought is ended by the tag alone. Where the model
    has begun a tag of several tokens, only the rest of the tag is forced. What was closed from outside is kept by its
    place, so that it can be read again.

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
        self._closed: dict[int, Ended] = {}  # tokens of the answer -> who closed a thought there
        self._state = self._judged(_State(opened), False)
        self._drafts: dict[tuple[int, ...], _State] = {(): self._state}

    @property
    def bounded(self) -> bool:
        """True where tokens may be forced."""
        return self._policy is not None or self._steering.every is not None or bool(self._closed)

    @property
    def stopped(self) -> int | None:
        """After how many tokens of the answer its caller wanted no more of a thought."""
        return next((place for place, by in self._closed.items() if by == "caller"), None)

    def at(
        self, tokens: Sequence[int], drafted: Sequence[int], best: Callable[[], int] | None = None
    ) -> OneHot | LogitBoost | None:
        if not self.bounded:
            return None
        state = self._after(tokens, tuple(drafted))
        if state.todo and not (best and state.due and self._closes(state, best())):
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
        ends, kept = ends if state.blank else NONE, room is not None and self._over(state)
        if room is not None and (state.blank or kept) and len(self._close) == 1:
            ends = ends.union(self._close)  # a tag of no thought, which the text does not show
        if self._tags is None or room is None:
            return ends, None
        if room - state.made > len(self._close) + 1 and not kept:
            return ends, None
        text = b"".join(piece.data for piece in state.tail)  # a thought would be all that follows
        return ends | self._tags.opening(text), None

    def ahead(self, tokens: Sequence[int]) -> Sequence[int]:
        state = self._after(tokens, ())
        return () if state.due else state.todo

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
        """The probe that asks after `tokens`; None where it has its answer already."""
        probe = self._steering.probe
        return probe if probe is not None and self._after(tokens, ()).asks else None

    def asks_at(self, tokens: Sequence[int], run: Sequence[int]) -> int | None:
        """After how many tokens of `run`, after `tokens`, the probe asks; None: it does not."""
        if self._steering.probe is None:
            return None
        sizes = range(1, len(run) + 1)
        return next((n for n in sizes if self._after(tokens, tuple(run[:n])).asks), None)

    def tags_begun(self, tokens: Sequence[int], run: Sequence[int]) -> list[int]:
        """Places in `run`, after `tokens`, of what goes on with a closing tag of several tokens, perhaps where an end
        token would have come."""
        found = list[int]()
        for place, token in enumerate(run if self._steering.ends and len(self._close) > 1 else ()):
            state = self._after(tokens, tuple(run[:place]))
            if state.thinking and not state.todo and token == self._rest_of_tag(state)[0]:
                found.append(place)
        return found

    def note_probe(self, tokens: Sequence[int], settled: bool) -> None:
        """Note what the probe found after `tokens`: where the answer is settled, close the thought there."""
        if settled:
            self.close(tokens, "confident")
        self._state = self._state._replace(asks=False)
        self._drafts = {(): self._state}

    def close(
        self, tokens: Sequence[int], by: Ending = "caller", unread: Sequence[int] = ()
    ) -> bool:
        """Have the thought that `tokens` and then `unread` end in closed from the next token on, as a used-up budget
        does; where it is being closed already, nothing changes. Later thoughts are closed as they open. Call it
        between two steps. False: there is no thought."""
        state = self._after(tokens, ())
        for token in unread:
            state = self._step(state, token)
        if by == "caller" and state.cut != by:  # it closed none before
            self._closed = {place: one for place, one in self._closed.items() if one != by}
        self.close_at(state.made, by)
        return state.thinking

    def close_at(self, made: int, by: Ended) -> None:
        """The same for the thought that the answer's first tokens end in, where there is one, once they are there.
        `model`: it did so by an end token, and the rest of the tag that was begun is forced."""
        self._closed.setdefault(made, by)
        if self._state.made == made:
            self._state = self._closed_here(self._state)
        self._drafts = {(): self._state}

    def outcome(self, tokens: Sequence[int], strayed: bool = False) -> Outcome:
        """Of a text that ends, perhaps before what was read of it. `strayed`: it turned out to begin inside a
        thought, which its first closing tag ended."""
        if len(tokens) < self._read:
            again = type(self)(self._tags, self._opened, self._prompt_length, self._steering)
            again._closed = self._closed
            return again.outcome(tokens, strayed)
        state = self._after(tokens, ())
        found = Outcome(state.spent, state.ended, state.thinking, state.put_in)
        if not strayed:
            return found
        free = type(self)(self._tags, True, self._prompt_length)
        first = free._state
        for token in tokens[self._prompt_length :]:
            first = free._step(first, token)
            if not first.thinking:
                break
        return found._replace(spent=first.spent + state.spent, ended=state.ended or first.ended)

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
        state = self._next(state, token)
        return self._closed_here(state) if state.made in self._closed else state

    def _next(self, state: _State, token: int) -> _State:
        todo = state.todo
        forced = bool(todo) and token == todo[0]
        todo = todo[1:] if forced else ()  # under another mode other tokens may have come
        closes = forced and state.ending is not None
        counted = state.thinking and not closes
        data = b"" if self._tags is None else self._tags.spell(token)
        state = state._replace(
            made=state.made + 1,
            spent=state.spent + counted,
            put_in=state.put_in + forced,
            todo=todo,
            said=state.said or closes,
            warned=state.warned or (forced and not closes and bool(data.strip())),
            asks=False,
        )
        digit, blank = state.digit, state.blank
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
        paused = (
            counted
            and not forced
            and (data.endswith(b"\n") or (not digit and data.rstrip().endswith(MARKS)))
        )
        state = self._judged(state._replace(digit=data[-1:].isdigit()), paused)
        every = self._steering.every
        if every is None or not counted or state.spent % every or state.todo or state.tail:
            return state
        return state._replace(asks=state.cut is None)

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
        ending, made = state.cut, state.made + len(closing)
        if ending is None and self._policy is not None:
            ending = self._policy.judge(state.spent, made, state.repeats)
            if ending is None and paused and self._policy.warns(state.spent, made, len(warning)):
                return state._replace(todo=warning, ending=None)
        if ending is None:
            return state
        rest = self._rest_of_tag(state)
        return state._replace(todo=rest if len(rest) < len(self._close) else closing, ending=ending)

    def _closed_here(self, state: _State) -> _State:
        """The state where a thought is closed from outside."""
        by = self._closed[state.made]
        if not state.thinking or (state.todo and state.ending is not None):
            return state
        if by == "model":
            return state._replace(todo=self._rest_of_tag(state), ending=by)
        return self._judged(state._replace(todo=(), asks=False, cut=by), False)

    def _closes(self, state: _State, likeliest: int) -> bool:
        """Tell whether the model is about to close its thought: its likeliest token does, or is a blank before that."""
        tag = self._rest_of_tag(state)[0]
        return likeliest == tag or (
            self._tags is not None and not self._tags.spell(likeliest).strip()
        )

    def _over(self, state: _State) -> bool:
        """Tell whether another thought would be closed as it opens."""
        if state.ended is None:
            return False
        opened = state._replace(thinking=True, made=state.made + 1, tail=(), todo=())
        return bool(self._judged(opened._replace(repeats=state.repeats.next_part()), False).todo)

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
