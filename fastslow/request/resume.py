"""State of an answer whose engine ended: the same call continues it on another engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ConfigDict

from fastslow.engine.params import Count, TokenId, shown
from fastslow.output import Decided

if TYPE_CHECKING:  # which import torch
    from fastslow.engine.core.request import Request
    from fastslow.engine.model.routed_units import RoutedUnits


@dataclass(frozen=True, slots=True)
class ResumeState:
    """The tokens of an answer so far. The same call continues them, and its answer is what it would have
    been: greedy and seeded answers have the same tokens, text, and end.

    The call reads these tokens as it reads a prompt. They belong to the answer: they count for its length, its
    penalties and its stops, and its first piece holds them. Answers in a mode that escalates cannot be
    continued.

    tokens: of each of the n answers, from its first token on: an empty list where there is none yet, and none at all
    for the last ones that have not begun. decided: of each of these, `Piece.decided` of its first piece; () = nothing
    was decided of any. stopped: of each of these, `Piece.stopped` of its latest piece, after how many tokens its caller
    had the thought closed, see `RequestHandle.stop_thinking`; None = it did not, and () = of none.
    """

    __pydantic_config__ = ConfigDict(revalidate_instances="always")  # as a field of options

    tokens: Sequence[Sequence[TokenId]]
    decided: Sequence[Decided | None] = ()
    stopped: Sequence[Count | None] = ()

    def check(self, vocab_size: int, context: int) -> None:
        """Refuse what does not fit any call."""
        for place, tokens in enumerate(self.tokens):
            if len(tokens) > context:
                raise ValueError(
                    f"answered.tokens[{place}] has {len(tokens)} tokens; the context is {context}"
                )
            if (largest := max(tokens, default=0)) >= vocab_size:
                raise ValueError(
                    f"answered.tokens[{place}] holds {largest}, not an id in 0..{vocab_size - 1}"
                )
        for name, values in (("decided", self.decided), ("stopped", self.stopped)):
            if values and len(values) != len(self.tokens):
                raise ValueError(
                    f"answered.{name} has {len(values)} entries for {len(self.tokens)} answers"
                )
        for place, (tokens, stopped) in enumerate(zip(self.tokens, self.stopped)):
            if stopped is not None and stopped > len(tokens):
                raise ValueError(
                    f"answered.stopped[{place}]={stopped} must be a number of its tokens, 0..{len(tokens)}"
                )

    @property
    def chosen(self) -> Decided | None:
        """The decision on the mode, the same for all answers; None: none was made."""
        return next((one for one in self.decided if one is not None and one.mode), None)

    @property
    def turn_left(self) -> int | None:
        """Tokens of thought that were left of the turn when they began; None: no limit is known."""
        return next((one.turn_left for one in self.decided if one is not None), None)

    def begun(self, index: int) -> bool:
        """Tell whether there are tokens of this answer."""
        return index < len(self.tokens) and len(self.tokens[index]) > 0

    def begin(self, request: Request, index: int, units: RoutedUnits) -> None:
        """Have the request of one of these answers, not submitted yet, continue it.

        request: of a call that is the same in all else.
        """
        mode, room = request.mode, request.max_len + 1 - request.prompt_length
        tokens = self.tokens[index]
        if mode.escalate is not None:
            raise ValueError(
                f"answered: mode {shown(mode.name)} escalates, and how sure the model was of these tokens is "
                "not known: ask again without them"
            )
        if len(tokens) > room:
            raise ValueError(
                f"answered.tokens[{index}] has {len(tokens)} tokens; this call's answer has room for {room}"
            )
        if request.scheduling.latency_target is not None and request.scheduling.may_cut_groups:
            decided = self.decided[index] if self.decided else None
            if decided is None:
                raise ValueError(
                    f"answered.decided[{index}] is missing: mode {shown(mode.name)} may run fewer {units.name}, "
                    "by load"
                )
            own = {units.name: decided.units}
            what = f"answered.decided[{index}]: "
            request.groups = units.checked(what, own.get("groups"), own.get("experts"))
            request.scheduling.may_cut_groups = False
        stopped = self.stopped[index] if self.stopped else None
        if stopped is not None and request.thinking is not None:
            request.thinking.close_at(stopped, "caller")
        resume(request, tokens)


def resume(request: Request, answered: Sequence[int]) -> None:
    """Have a request that was not submitted yet continue after tokens of its answer.

    It is then as a request that was preempted after them, and computes all of them again. All but the last
    are text from now on. The last one comes from the first step, as if the target had said it: so an answer
    that is over ends there, as it did before, and its log-probabilities are given.
    """
    kept = request.read_answered(answered)
    if request.stopper.reason is not None:
        raise ValueError(
            f"answered has {len(answered)} tokens, but this answer ends with token {kept} of them"
        )
    last = request.known.answered[-1:]
    if request.grammar is not None and not request.grammar.fits(request.tokens, last):
        raise ValueError("answered holds tokens that the grammar of this call does not allow")
