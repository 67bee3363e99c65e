"""Grammar of a request: the tokens that may come at every place of its answer, and of a draft."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

import numpy as np

from fastslow.engine.sampling.answer_start import EMPTY, AnswerStart, ScanState
from fastslow.engine.token_mask import Allowed, TokenMask

FURTHEST = 64  # certain tokens that are looked for at a time
LONG_MASK = 0.1  # seconds of processor time; usual masks take 10 ms at most
MOST_LONG = 2.0  # seconds of all long ones of an answer
LONG_WALK = 0.003  # seconds of processor time to follow a token; usual ones take 0.1 ms
SLOW = 0.002  # seconds of a mask
FADE = 0.9  # a token's, of what is expected of the next masks


class GrammarError(ValueError):
    """A grammar cannot continue after a text. Where an answer comes there, its request ends."""


class _NotMade(GrammarError):
    """A drafted row's mask that nobody waited for."""


class Ended(IntEnum):
    """State of a text that was accepted so far: whether it is whole."""

    NO = 0
    MAY = 1  # it is, and more may come
    MUST = 2  # it is, and nothing may follow


class Matcher(Protocol):
    """A place in a grammar. It knows text and nothing of end tokens."""

    seconds: float  # of processor time, that a mask or a token is expected to take

    def mask(self) -> Allowed:
        """bool [V], a new array: the tokens that may come next. GrammarError: this place is too complex."""

    def accept(self, token: int) -> bool:
        """Take the next token. False: it does not fit, and nothing has changed. GrammarError: it is too complex to
        tell; nothing has changed."""

    def roll_back(self, count: int) -> None:
        """Take back the last `count` tokens."""

    def forced(self) -> Sequence[int]:
        """Tokens of a text that has to come next, as the tokenizer writes it; often none."""

    def ended(self) -> Ended:
        """Say whether the text is whole."""


class _Progress(NamedTuple):
    """Facts of a text that are needed to take its next token."""

    place: ScanState | None  # in the text before the answer; None = the answer has begun
    fed: tuple[int, ...] = ()  # the answer's tokens that the matcher has after the committed ones
    over: bool = False  # the answer is whole, and ended
    lost: bool = False  # a token did not fit
    error: GrammarError | None = None  # nobody can tell what may come


class Grammar:
    """Holds one request's answer to a grammar.

    All is a function of the text, so that it is the same for committed and for drafted tokens, and
    after a preemption. The answer begins after the thought; end tokens come only where the grammar
    may end. Where a text has to come, its tokens are those of the tokenizer: others that spell the
    same are not allowed there.

    Args:
        start: finds where the answer begins.
        matcher: at the beginning of the grammar; it belongs to this request from now on.
        ends: tokens that end the answer.
        prompt_length: tokens before the answer.
    """

    def __init__(
        self, start: AnswerStart, matcher: Matcher, ends: frozenset[int], prompt_length: int
    ) -> None:
        self._start = start
        self._matcher = matcher
        self._ends = sorted(ends)
        self._read = prompt_length
        self._state = _Progress(start.first)
        self._states: dict[tuple[int, ...], _Progress] = {(): self._state}
        self._masks: dict[tuple[int, ...], TokenMask | Exception] = {}
        self._path: list[int] = []  # what the matcher took after the committed tokens
        self._lock = threading.RLock()  # a mask may still be made when its request is over
        self._long = 0.0  # seconds of long masks
        self._walk = 0.0  # seconds that it takes to follow a token
        self.seconds = matcher.seconds  # of processor time, that a mask takes
        self.begins: int | None = None if start.first is not None else prompt_length

    @property
    def at_once(self) -> bool:
        """True where the answer begins at once: no thought may come before it."""
        return self._start.first is None or self._start.first.kind == "gap"

    @property
    def walks_slowly(self) -> bool:
        """True where following a token takes longer than a step has for it, and than drafts are worth; or may do so:
        nobody knows of the first one, and masks are long."""
        return self._walk > LONG_WALK or self.seconds > LONG_MASK

    def begun(self, tokens: Sequence[int]) -> bool:
        return self.at_once or self._begins(tokens) is not None

    def knows(self, tokens: Sequence[int]) -> bool:
        """Tell whether the mask after a text is made."""
        return self._read == len(tokens) and () in self._masks

    def follows(self, run: Sequence[int]) -> bool:
        """Tell whether it has followed these tokens after the text."""
        return tuple(run) in self._states

    def leave_out(self, drafted: Sequence[int]) -> None:
        """Make no mask after this draft any more."""
        self._masks.setdefault(tuple(drafted), _NotMade("its mask was not made in time"))

    def at(self, tokens: Sequence[int], drafted: Sequence[int]) -> TokenMask:
        """As `GrammarRule.at`. GrammarError: it cannot continue after this text."""
        with self._lock:
            key, began = tuple(drafted), time.thread_time()
            state = self._after(tokens, key)
            mask = self._masks.get(key)
            if mask is None:
                mask = self._masks[key] = self._made(state, began)
        if isinstance(mask, Exception):
            raise mask
        return mask

    def _made(self, state: _Progress, began: float) -> TokenMask | Exception:
        try:
            mask = self._mask(state)
        except Exception as error:  # noqa: BLE001 - it is raised where the mask is asked for
            return error
        finally:
            seconds = time.thread_time() - began
            self.seconds = max(seconds, FADE * self.seconds)
        if seconds > LONG_MASK:
            self._long += seconds
        if self._long > MOST_LONG:
            return GrammarError(
                f"the grammar is too slow: masks of more than {1000 * LONG_MASK:g} ms took {self._long:.1f} s of "
                f"processor time, and an answer has {MOST_LONG:g} s for them"
            )
        return mask

    def fits(self, tokens: Sequence[int], drafted: Sequence[int]) -> bool:
        state = self._after(tokens, tuple(drafted))
        return not state.lost and state.error is None

    def ahead(self, tokens: Sequence[int], drafted: Sequence[int], most: int) -> list[int]:
        run = list(drafted)
        while len(run) - len(drafted) < min(most, FURTHEST) and not self.walks_slowly:
            token = self._certain(self._after(tokens, tuple(run)))
            if token is None:
                break
            run.append(token)
        return run[len(drafted) :]

    def whole_at(self, tokens: Sequence[int], run: Sequence[int]) -> int | None:
        """Count the tokens of `run`, after `tokens`, that make the answer whole; None: more has to come."""
        ends = (i for i in range(1, len(run) + 1) if self._after(tokens, tuple(run[:i])).over)
        return next(ends, None)

    def thought(self, tokens: Sequence[int]) -> Sequence[int]:
        """The part of a text that comes before the answer."""
        begins = self._begins(tokens)
        return tokens if begins is None else tokens[:begins]

    def _begins(self, tokens: Sequence[int]) -> int | None:
        if self.begins is None:
            with self._lock:
                self._after(tokens, ())
        return self.begins

    def _after(self, tokens: Sequence[int], drafted: tuple[int, ...]) -> _Progress:
        while self._read < len(tokens):  # a whole answer may come at once
            self._commit(tokens, min(self._read + FURTHEST, len(tokens)))
        state = self._states.get(drafted)
        if state is None:
            self._states[drafted] = state = self._timed(
                self._after(tokens, drafted[:-1]), drafted[-1]
            )
        return state

    def _commit(self, tokens: Sequence[int], end: int) -> None:
        run: tuple[int, ...] = ()
        for place, token in enumerate(tokens[self._read : end], self._read):
            run = (*run, token)
            if run not in self._states:
                self._states[run] = self._timed(self._states[run[:-1]], token)
            if self.begins is None and self._states[run].place is None:
                self.begins = place  # the token that the answer begins in
        state = self._states[run]
        try:
            self._go(state.fed)
        except GrammarError as error:
            state = state._replace(error=error)
        self._path = []
        self._read = end
        self._state = state._replace(fed=())
        self._states = {(): self._state}
        mask = self._masks.get(run)
        self._masks = {} if mask is None or isinstance(mask, _NotMade) else {(): mask}

    def _timed(self, state: _Progress, token: int) -> _Progress:
        # a slow matcher works in a thread of its own
        clock = time.perf_counter if self._matcher.seconds > SLOW else time.thread_time
        began = clock()
        try:
            return self._step(state, token)
        finally:
            self._walk = max(clock() - began, FADE * self._walk)

    def _step(self, state: _Progress, token: int) -> _Progress:
        if state.error is not None:
            return state
        if state.over or state.lost:
            return state._replace(lost=True)
        if state.place is not None:
            if state.place.free and token in self._ends:
                return state._replace(lost=True)
            found = self._start.step(state.place, token)
            if found is None:
                return state._replace(lost=True)
            if isinstance(found, ScanState):
                return state._replace(place=found)
            own = found
        else:
            own = token
            if (certain := self._certain(state)) is not None and token != certain:
                return state._replace(lost=True)
        try:
            self._go(state.fed)
            taken = self._matcher.accept(own)
        except GrammarError as error:
            return _Progress(None, state.fed, error=error)
        if taken:
            self._path.append(own)
            return _Progress(None, (*state.fed, own), self._matcher.ended() is Ended.MUST)
        ended = token in self._ends and self._matcher.ended() is not Ended.NO
        return _Progress(None, state.fed, over=ended, lost=not ended)

    def _go(self, fed: tuple[int, ...]) -> None:
        """Bring the matcher to where it has taken these tokens after the committed ones."""
        same = 0
        while same < min(len(fed), len(self._path)) and fed[same] == self._path[same]:
            same += 1
        if same < len(self._path):
            self._matcher.roll_back(len(self._path) - same)
            del self._path[same:]
        for token in fed[same:]:
            self._matcher.accept(token)
            self._path.append(token)

    def _certain(self, state: _Progress) -> int | None:
        if state.place is not None or state.over or state.lost or state.error is not None:
            return None
        try:
            self._go(state.fed)
        except GrammarError:  # said where this place is asked for
            return None
        return next(iter(self._matcher.forced()), None)

    def _mask(self, state: _Progress) -> TokenMask:
        if state.error is not None:
            raise state.error
        if state.over or state.lost:
            return TokenMask(only=self._ends[0] if self._ends else 0)  # never committed
        self._go(state.fed)
        if self._matcher.seconds > SLOW:
            self._matcher.mask()  # other threads run meanwhile, and what is certain is known then
        if (certain := self._certain(state)) is not None:
            return TokenMask(only=certain)
        allowed_V = self._matcher.mask()
        if state.place is not None:
            return self._before(state.place, allowed_V)
        more = int(np.count_nonzero(allowed_V))
        if self._matcher.ended() is not Ended.NO:
            if not more and self._ends:
                return TokenMask(only=self._ends[0])
            allowed_V[self._ends] = True
            more += len(self._ends)
        return _mask_of(allowed_V, more)

    def _before(self, place: ScanState, allowed_V: Allowed) -> TokenMask:
        """Return the mask in the text before the answer; `allowed_V`: tokens that may begin the answer."""
        said = self._start.options(place)
        rest = said.remainder_tokens
        fits = np.where(rest >= 0, allowed_V[rest], rest == EMPTY)
        if place.free:
            forbidden = [*self._ends, *said.tokens[~fits].tolist()]
            return TokenMask(forbidden=forbidden, before=True)
        if not said.answer:
            allowed_V[:] = False
        elif self._matcher.ended() is not Ended.NO:
            allowed_V[self._ends] = True
        allowed_V[said.tokens[fits]] = True
        return _mask_of(allowed_V, int(np.count_nonzero(allowed_V)))


def _mask_of(allowed_V: Allowed, count: int) -> TokenMask:
    if not count:
        raise GrammarError("the grammar cannot continue: no token of this model fits")
    return TokenMask(only=int(allowed_V.argmax()) if count == 1 else None, allowed=allowed_V)
