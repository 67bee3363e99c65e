"""Outputs of a call: answers, their pieces and metrics."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from fastslow.engine.core.spec_decode_stats import DraftCounts
from fastslow.engine.params import Count
from fastslow.engine.sampling.stop import Reason
from fastslow.engine.sampling.thinking_limits import Ended


@dataclass(frozen=True, slots=True)
class Metrics:
    """Metrics of one answer. Times are seconds."""

    mode: str
    drafter: str
    ttft: float  # from the call to the first token
    tpot: float  # mean time of each token after the first
    tokens: int
    # target forwards that gave tokens, or only told more of an answer that was asked for
    steps: int
    drafted: int  # nodes verified
    accepted: int
    cut: int  # nodes proposed and not verified: they would not have paid
    runs: list[int]  # accepted in each step; one more token comes from the target
    draft_seconds: float  # of whole steps that the request was part of
    verify_seconds: float
    acceptance: list[float]  # by depth: of the drafts so deep, the share accepted to there
    cached_tokens: int  # prompt tokens found in the prefix cache
    preemptions: int
    decision: str = ""  # why this mode, and what changed later; "" where the caller chose it
    escalated_at: int | None = None  # tokens of the first mode's answer; None = no other mode
    target_ms: float | None = None  # of the time to the first token, and of the mean of all others
    target_kept: bool | None = None  # None without a target
    # between the thinking tags, a warning included, without the tags and without a closing phrase
    thinking_tokens: int = 0
    # what ended the thinking: the model, its budget, the turn's, the room that the answer needs, a loop, an answer
    # that was settled ("confident"), its caller, or length (max_tokens was met inside a thought). None: there was no thought, or the answer ended otherwise inside one
    thinking_ended: Ended | Literal["length"] | None = None
    put_in_tokens: int = 0  # that the engine wrote: a warning, a closing phrase, the tag behind it
    # that asked for the answer before the thought was over, see `Mode.confidence`
    probe_rows: int = 0
    turn_budget_left: int | None = None  # tokens of thought; None = the turn has no budget
    prompt_tokens: int = 0
    run_seconds: float = 0.0  # from the start of the first step to the last token
    groups: int | None = None  # routed groups that ran for a token, at the end; None = it has none
    experts: int | None = None  # routed experts that ran, in a model without groups
    queue_seconds: float = 0.0  # from the call to the start of its first step
    # tokens drafted from the call's prediction, see `LLM.generate`: those accepted, and all others
    prediction_accepted: int = 0
    prediction_rejected: int = 0
    by_drafter: dict[str, DraftCounts] = field(default_factory=dict)  # of the drafted tokens
    answered_tokens: int = 0  # of `tokens`, those that the call brought: another engine made them

    @property
    def mean_accepted(self) -> float:
        """Draft tokens accepted per step."""
        return self.accepted / self.steps if self.steps else 0.0

    @property
    def tokens_per_step(self) -> float:
        """1.0 is plain decoding."""
        return (self.tokens - self.answered_tokens) / self.steps if self.steps else 0.0

    @property
    def tokens_per_second(self) -> float:
        """While decoding: the prompt's time is not counted, unless one step made the whole answer."""
        if self.tpot > 0:
            return 1 / self.tpot
        return self.tokens / self.run_seconds if self.run_seconds > 0 else 0.0

    @property
    def acceptance_rate(self) -> float:
        """Share of the drafted tokens that were accepted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    def to_dict(self) -> dict[str, Any]:
        """All fields and what follows from them, as plain JSON values."""
        return asdict(self) | {name: getattr(self, name) for name in DERIVED}


DERIVED = ("mean_accepted", "acceptance_rate", "tokens_per_step", "tokens_per_second")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function. In a piece of a stream its `arguments` are what is new of them."""

    name: str
    arguments: str  # JSON text; it is whole unless the answer was cut
    id: str  # that no other call has

    def to_dict(self) -> dict[str, Any]:
        """As an assistant's message has it in `tool_calls`."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer. `token_ids` holds the end token if one was met; `text` does not."""

    text: str
    reasoning: str  # what stood between the model's thinking tags, else ""; see `ChoiceState`
    token_ids: list[int]
    finish_reason: Reason
    stop_reason: str | int | None  # the stop string or end token that ended it
    logprobs: list[dict[int, float]] | None
    metrics: Metrics
    error: str | None = None
    # of each token: "target", the name of the drafter that drafted it, "forced", or "answered": the call brought it
    sources: list[str] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)  # of the call's `tools`; not in `text`

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; in log-probabilities token ids are texts, and minus infinity is null."""
        own = {"logprobs": _plain(self.logprobs), "metrics": self.metrics.to_dict()}
        return asdict(self) | own


@dataclass(frozen=True, slots=True)
class Output:
    """The answers to one prompt; what the first one has is also this object's."""

    prompt: str | None  # None if token ids were given
    prompt_token_ids: list[int]
    choices: list[Completion]
    prompt_logprobs: list[dict[int, float] | None] | None = None

    def __repr__(self) -> str:
        more = f", n={len(self.choices)}" if len(self.choices) > 1 else ""
        made = f"{len(self.token_ids)} tokens, {self.finish_reason!r}, mode {self.metrics.mode!r}"
        return f"Output({textwrap.shorten(repr(self.text), 80, placeholder=' ...')}, {made}{more})"

    def _repr_html_(self) -> str:
        """As a notebook shows it: the reasoning folded, the text, and how it came about."""
        parts = []
        for one in self.choices:
            if one.reasoning:
                parts.append(
                    f"<details><summary>reasoning</summary>{_html(one.reasoning)}</details>"
                )
            parts.append(_html(one.text))
        made = self.metrics
        said = f"{made.tokens} tokens, {made.tokens_per_second:.0f}/s, mode {made.mode}, {self.finish_reason}"
        return "".join([*parts, f"<small>{html.escape(said)}</small>"])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; see `Completion.to_dict`. Text, reasoning, finish_reason and
        tokens_per_second are the first choice's."""
        return {
            "prompt": self.prompt,
            "prompt_token_ids": list(self.prompt_token_ids),
            "prompt_tokens": len(self.prompt_token_ids),
            "prompt_logprobs": _plain(self.prompt_logprobs),
            "text": self.text,
            "reasoning": self.reasoning,
            "finish_reason": self.finish_reason,
            "tokens_per_second": self.metrics.tokens_per_second,
            "choices": [choice.to_dict() for choice in self.choices],
        }

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def reasoning(self) -> str:
        return self.choices[0].reasoning

    @property
    def tool_calls(self) -> list[ToolCall]:
        return self.choices[0].tool_calls

    @property
    def token_ids(self) -> list[int]:
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> Reason:
        return self.choices[0].finish_reason

    @property
    def stop_reason(self) -> str | int | None:
        return self.choices[0].stop_reason

    @property
    def logprobs(self) -> list[dict[int, float]] | None:
        return self.choices[0].logprobs

    @property
    def metrics(self) -> Metrics:
        return self.choices[0].metrics


class Decided(NamedTuple):
    """Decisions that were made when an answer began. An engine that continues it does not decide again."""

    mode: str  # the preset that was chosen; "" where the call named its mode
    why: str  # in one line for people
    units: Count | None  # routed groups, or experts, that run; None = all
    turn_left: Count | None = None  # tokens of thought that were left of a turn that the call names


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a streamed answer. The last one carries the whole `output`.

    All `text` and `reasoning` of one `index` joined are those of that answer, except for a thought that is
    closed and was never opened: it is streamed as text, while the output has it in `reasoning`.
    """

    text: str = ""
    reasoning: str = ""
    token_ids: list[int] = field(default_factory=list)
    output: Output | None = None
    logprobs: list[dict[int, float]] | None = None  # of `token_ids`, where they were asked for
    index: int = 0  # which of n answers
    sources: list[str] = field(default_factory=list)  # of `token_ids`, as `Completion.sources`
    # in the first piece of an answer whose mode was chosen, whose experts may be cut to keep a target, or whose turn
    # is named
    decided: Decided | None = None
    stopped: int | None = None  # after how many tokens of the answer its caller stopped a thought
    tool_calls: list[ToolCall] = field(default_factory=list)  # that begin or go on


class FastslowWarning(UserWarning):
    """A call does something else than was probably meant. It is in the log, too; an application's log is off."""


class GenerationError(RuntimeError):
    """At least one request failed inside the engine; `outputs` holds all of them, the good ones too."""

    def __init__(self, message: str, outputs: list[Output]) -> None:
        super().__init__(message)
        self.outputs = outputs


def _html(text: str) -> str:
    return f"<pre style='white-space: pre-wrap'>{html.escape(text)}</pre>"


def _plain(
    places: Sequence[Mapping[int, float] | None] | None,
) -> list[dict[str, float | None] | None] | None:
    """Log-probabilities by place, as JSON has them: keys are texts, numbers are finite."""
    if places is None:
        return None
    return [
        None if p is None else {str(t): x if math.isfinite(x) else None for t, x in p.items()}
        for p in places
    ]
