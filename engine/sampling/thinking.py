"""How many tokens a request's thought has, and what a policy that bounds it allows as the next one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, Self

from fastslow.engine.text.thought import TagTokens
from fastslow.engine.types import LogitBoost, OneHot

FURTHEST = 64  # tokens that one step may add: most nodes of a draft
Ending = Literal["budget", "loop", "settled", "caller"]
"""Why a thought was closed for the model."""
Ended = Literal["model", Ending]


class Thought(NamedTuple):
    """The thought that a text ends in, as far as a policy may know it."""

    spent: int  # tokens that began between the tags, over all thoughts of the answer
    recent: Sequence[int] = ()  # the latest of this thought, at most as many as the policy reads
    line: str = ""  # the line that its last token ended, "" inside a line
    said: int = 0  # how often this thought has said that line by now


class ThinkingPolicy(Protocol):
    """Decides when a thought has to end. A pure function of the thought."""

    reads: int  # latest tokens that it wants to see; 0 = neither tokens nor lines

    def judge(self, thought: Thought) -> Ending | None:
        """Why the thought is to be closed now; None = it is not."""

    def lift(self, spent: int) -> float:
        """What is added to the closing tag's logit after `spent` tokens; 0 = nothing."""

    def lifts(self, spent: range) -> bool:
        """Whether `lift` is other than 0 anywhere in the range."""


class CutThought:
    """The policy that held before, and beside it: a thought ends after `most` tokens, counted over all
    thoughts of the answer, because its caller said so."""

    def __init__(self, policy: ThinkingPolicy | None, most: int) -> None:
        self._policy = policy
        self._most = most
        self.reads = 0 if policy is None else policy.reads

    def judge(self, thought: Thought) -> Ending | None:
        if thought.spent >= self._most:
            return "caller"
        return None if self._policy is None else self._policy.judge(thought)

    def lift(self, spent: int) -> float:
        return 0.0 if self._policy is None else self._policy.lift(spent)

    def lifts(self, spent: range) -> bool:
        return self._policy is not None and self._policy.lifts(spent)


class _Piece(NamedTuple):
    """A token in whose bytes a tag may have begun."""

    data: bytes
    token: int
    counted: bool


class _State(NamedTuple):
    """What has to be known of a text to take its next token."""

    thinking: bool
    spent: int = 0  # tokens that began inside a thought and were not forced
    tail: tuple[_Piece, ...] = ()
    todo: tuple[int, ...] = ()  # next tokens, which are forced
    ending: Ending | None = None  # why they are
    said: bool = False  # whether a closing phrase was begun
    ended: Ended | None = None  # what closed the latest thought
    recent: tuple[int, ...] = ()  # of the thought, what the policy reads
    line: bytes = b""  # that is being written
    lines: tuple[str, ...] = ()  # written before it in this thought


class Thinking:
    """One request's thinking: counts its tokens, and ends it where the policy says so.

    All is a function of the text. A thought ends with the tokens of the closing phrase and tag, which
    are forced; these do not count, and neither do tags. Drafts need no rule: a forced
    token has probability 1, wherever in a tree it stands.

    The phrase comes once in an answer: a later thought is ended by the tag alone. Where the model
    has begun a tag of several tokens, only the rest of the tag is forced.

    Args:
        tags: the model's.
        opened: the answer begins inside a thought.
        prompt_length: tokens before the answer.
        policy: None = thoughts are only counted.
        closing: tokens of the closing phrase and tag.
    """

    def __init__(
        self,
        tags: TagTokens,
        opened: bool,
        prompt_length: int,
        policy: ThinkingPolicy | None = None,
        closing: tuple[int, ...] = (),
    ) -> None:
        self._tags = tags
        self._policy = policy
        self._reads = 0 if policy is None else policy.reads
        self._closing = closing or tags.close_ids
        self._prompt_length = prompt_length
        self._read = prompt_length
        self._state = self._judged(_State(opened), False)
        self._drafts: dict[tuple[int, ...], _State] = {(): self._state}

    @property
    def bounded(self) -> bool:
        """Whether there is a policy that may force tokens."""
        return self._policy is not None

    def at(self, tokens: Sequence[int], drafted: Sequence[int]) -> OneHot | LogitBoost | None:
        if self._policy is None:
            return None
        state = self._after(tokens, tuple(drafted))
        if state.todo:
            return OneHot(state.todo[0])
        by = self._policy.lift(state.spent) if state.thinking else 0.0
        return LogitBoost(self._rest_of_tag(state)[0], by) if by else None

    def ahead(self, tokens: Sequence[int]) -> Sequence[int]:
        return () if self._policy is None else self._after(tokens, ()).todo

    def lifts(self, tokens: Sequence[int]) -> bool:
        if self._policy is None:
            return False
        spent = self._after(tokens, ()).spent
        return self._policy.lifts(range(spent, spent + FURTHEST + 1))

    def inside(self, tokens: Sequence[int]) -> bool:
        return self._after(tokens, ()).thinking

    def close(self, tokens: Sequence[int]) -> bool:
        """Have the thought that `tokens` end in closed from the next token on, as a used-up budget does.
        Later thoughts are closed as they open. Call it between two steps. False: there is no thought."""
        state = self._after(tokens, ())
        if not state.thinking:
            return False
        if not state.todo:  # else it is being closed
            self._policy = CutThought(self._policy, state.spent)
            self._state = self._judged(state, False)
            self._drafts = {(): self._state}
        return True

    def outcome(self, tokens: Sequence[int]) -> tuple[int, Ended | None, bool]:
        """Of a whole text: tokens of thought, what ended the latest one, whether one is still open."""
        state = self._after(tokens, ())
        return state.spent, state.ended, state.thinking

    def reopened(self) -> Self:
        """The same for a text that turned out to begin inside a thought, to count its tokens."""
        return type(self)(self._tags, True, self._prompt_length)

    def _after(self, tokens: Sequence[int], drafted: tuple[int, ...]) -> _State:
        if self._read < len(tokens):
            for token in tokens[self._read :]:
                self._state = self._step(self._state, token)
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
        data = self._tags.spell(token)
        counted = state.thinking and not forced
        tag = self._tags.close if state.thinking else self._tags.open
        if state.tail or tag[:1] in data:
            piece = _Piece(data, token, counted)
            state = state._replace(spent=state.spent + counted, tail=(*state.tail, piece))
            state = self._past_tags(state, "model" if not forced else state.ending)
        elif counted:
            state = state._replace(spent=state.spent + 1)
        if forced or state.todo:
            state = state._replace(todo=todo, said=state.said or forced)
        if not state.thinking:
            return state
        if counted and self._reads:
            state = self._noted(state, data, token)
        return self._judged(state, b"\n" in data)

    def _past_tags(self, state: _State, ended: Ended | None) -> _State:
        """The state after the tags that the latest token completes."""
        text = b"".join(piece.data for piece in state.tail)
        while tag := self._tags.close if state.thinking else self._tags.open:
            place = text.find(tag)
            if place < 0:
                break
            inside, begins = 0, 0  # counted tokens that began in the tag, so not in the thought
            for piece in state.tail:
                inside += piece.counted and begins >= place
                begins += len(piece.data)
            text = text[place + len(tag) :]
            state = _State(
                thinking=not state.thinking,
                spent=state.spent - inside,
                tail=(_Piece(text, -1, False),),
                todo=state.todo,
                ending=state.ending,
                said=state.said,
                ended=ended if state.thinking else state.ended,
            )
        begun = next((k for k in range(len(tag) - 1, 0, -1) if text.endswith(tag[:k])), 0)
        return state._replace(tail=_last(state.tail, begun))

    def _noted(self, state: _State, data: bytes, token: int) -> _State:
        """The state with what the policy reads of a thought: its latest tokens, and its lines."""
        *ended, line = (state.line + data).split(b"\n")
        lines = [line.decode("utf-8", "replace").strip() for line in ended]
        return state._replace(
            recent=(*state.recent, token)[-self._reads :],
            line=line,
            lines=(*state.lines, *filter(None, lines)) if lines else state.lines,
        )

    def _judged(self, state: _State, line_ended: bool) -> _State:
        """The state with the tokens that are forced now, if the policy ends the thought."""
        if self._policy is None or not state.thinking or state.todo:
            return state
        line = state.lines[-1] if line_ended and state.lines else ""
        said = state.lines.count(line) if line else 0
        ending = self._policy.judge(Thought(state.spent, state.recent, line, said))
        if ending is None:
            return state
        rest = self._rest_of_tag(state)
        alone = state.said or len(rest) < len(self._tags.close_ids)
        return state._replace(todo=rest if alone else self._closing, ending=ending)

    def _rest_of_tag(self, state: _State) -> tuple[int, ...]:
        """The closing tag without the part of it that the text ends in."""
        whole = self._tags.close_ids
        said = tuple(piece.token for piece in state.tail)
        begun = range(min(len(whole) - 1, len(said)), 0, -1)
        return next((whole[k:] for k in begun if said[-k:] == whole[:k]), whole)


def _last(tail: tuple[_Piece, ...], size: int) -> tuple[_Piece, ...]:
    """The latest tokens that hold this many bytes."""
    first = len(tail)
    while size > 0:
        first -= 1
        size -= len(tail[first].data)
    return tail[first:]
