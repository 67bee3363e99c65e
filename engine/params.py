"""Parameters that a user may ask for: sampling, speculation, mode. Every field is described and bounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictFloat, StrictInt, field_validator

# Readers take these from here, too.
from fastslow.engine.checked import Accepts, kept_as
from fastslow.engine.checked import Params as Params  # noqa: PLC0414
from fastslow.engine.checked import nearest as nearest  # noqa: PLC0414
from fastslow.engine.checked import sentence as sentence  # noqa: PLC0414
from fastslow.engine.checked import shown as shown  # noqa: PLC0414
from fastslow.engine.grammar_spec import GrammarSpec as GrammarSpec  # noqa: PLC0414

Number = StrictFloat  # takes an int too, but neither a bool nor text
Fields = Mapping[str, Any]
NONE: Any = None  # as a default, whose type is not compared
MOST = 2**31 - 1  # of any count: more means no more than "all", and sums of such numbers stay exact
Count = Annotated[StrictInt, Field(ge=0, le=MOST)]
Positive = Annotated[StrictInt, Field(ge=1, le=MOST)]
Thinking = Literal["off", "on", "auto"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Accept = Literal["auto", "token", "block", "reproducible", "lossy-stepwise"]
TokenId = Annotated[StrictInt, Field(ge=0)]
MOST_STOPS, LONGEST_STOP, LONGEST_NAME, LONGEST_TEXT = 64, 1000, 256, 1000
Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
Stops = tuple[Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)], ...]
NO_STOPS: Any = ()

WARNING = "\n\nThe time to think is nearly over. I should come to the answer now.\n\n"
CHANGED = "*"  # ends the name of a preset that a call changed
LATENCY_MS = 0.001, 86_400_000  # up to a day
MOST_PRIORITY = 1000  # that a call may give, and its negative
Temperature = Annotated[Number, Field(ge=0, le=100)]
TopK = Annotated[StrictInt, Field(ge=-1, le=MOST)]
TopP = Annotated[Number, Field(gt=0, le=1)]
MinP = Annotated[Number, Field(ge=0, le=1)]
Repetition = Annotated[Number, Field(ge=0.01, le=100)]
Penalty = Annotated[Number, Field(ge=-2, le=2)]


class SamplingParams(Params):
    """Sampling parameters: how tokens are drawn and when an answer ends. The names are those of vLLM and OpenAI."""

    max_tokens: Positive = Field(default=256, description="most tokens to answer")
    min_tokens: Count = Field(
        default=0, description="end tokens and stop strings are ignored before this many tokens"
    )
    temperature: Temperature = Field(
        default=0.0, description="0 = greedy; else logits are divided by it"
    )
    top_k: TopK = Field(default=-1, description="keep the k likeliest tokens; -1 or 0 = all")
    top_p: TopP = Field(
        default=1.0, description="keep the smallest set of tokens with this much probability"
    )
    min_p: MinP = Field(
        default=0.0, description="drop tokens below this share of the likeliest one's probability"
    )
    repetition_penalty: Repetition = Field(
        default=1.0,
        description="divides (or multiplies, if negative) logits of tokens seen in the text",
    )
    presence_penalty: Penalty = Field(
        default=0.0, description="subtracted once from tokens seen in the answer"
    )
    frequency_penalty: Penalty = Field(
        default=0.0, description="subtracted for each time a token was seen in the answer"
    )
    logit_bias: dict[int, Annotated[Number, Field(ge=-100, le=100)]] | None = Field(
        default=None, description="token id -> value added to its logit"
    )
    stop: Accepts[Stops, str | Sequence[str] | None] = Field(
        default=NO_STOPS,
        max_length=MOST_STOPS,
        description="a string or several that end the answer; they are not part of it",
    )
    stop_token_ids: Annotated[Sequence[int], kept_as(tuple[TokenId, ...])] = Field(
        default=(), description="token ids that end the answer, besides the model's own"
    )
    ignore_eos: StrictBool = Field(default=False, description="do not end at the model's end token")
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] | None = Field(
        default=None,
        description="keys every draw, with its place in the text: same seed, same answer",
    )
    n: Annotated[StrictInt, Field(ge=1, le=128)] = Field(
        default=1, description="answers to each prompt"
    )
    logprobs: Annotated[StrictInt, Field(ge=0, le=1000)] | None = Field(
        default=None,
        description="log-probabilities of this many likeliest tokens, and of the chosen one",
    )
    prompt_logprobs: Annotated[StrictInt, Field(ge=0, le=1000)] | None = Field(
        default=None, description="the same for each token of the prompt"
    )
    grammar: Accepts[GrammarSpec | None, GrammarSpec | Fields | None] = Field(
        default=NONE, description="what the answer, after a thought, has to look like"
    )

    @field_validator("stop", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        return () if value is None else (value,) if isinstance(value, str) else value

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _ids(cls, value: object) -> object:
        for key in value if isinstance(value, dict) else ():
            if isinstance(key, bool | float):
                raise ValueError(f"{shown(key)} is no token id")
        return value

    def model_post_init(self, _context: object) -> None:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens={self.min_tokens} exceeds max_tokens={self.max_tokens}")


class Speculation(Params):
    """Settings of drafts. `nodes=0` or drafter "off" is plain decoding."""

    drafter: Annotated[str, Field(max_length=100)] = Field(
        default="auto",
        description="a drafter's name, or off; a+b: b where a has no draft; a|b: each where it pays, "
        "side by side; auto = suffix, beside head or mtp where the model has one of them",
    )
    nodes: Annotated[StrictInt, Field(ge=0, le=64)] | None = Field(
        default=None,
        description="drafted per step, at most; None = as many as pay, from step to step",
    )
    accept: Accept = Field(
        default="auto",
        description="rule of acceptance; auto = token, and with a seed reproducible: same seed, same "
        "answer, whatever is drafted. Only lossy-stepwise may change what is said",
    )
    step_score: Annotated[Number, Field(gt=0, le=1)] = Field(
        default=0.6,
        description="lossy-stepwise keeps a drafted line whose tokens the target finds so likely, as a "
        "geometric mean",
    )
    model: str | Path | None = Field(
        default=None, description="the draft model, for drafter 'model': a folder, file or hub name"
    )
    groups: Count = Field(
        default=0, description="routed groups that drafter 'self' runs; 0 = shared experts only"
    )
    experts: Count | None = Field(
        default=None,
        description="the same for a model whose experts are in no groups; None = shared experts only, "
        "or a quarter of the routed ones where there are none",
    )
    layers: Annotated[tuple[Count, ...], Field(max_length=10_000)] | None = Field(
        default=None, description="layers that drafter 'self' runs; None = all"
    )
    head: str | Path | None = Field(
        default=None,
        description="a trained head's file, or the folder or hub name of a published EAGLE-3 head "
        "or a Gemma 4 assistant; None = the one of the model",
    )
    corpus: str | Path | None = Field(
        default=None, description="stored answers for drafter 'suffix', see `fastslow corpus`"
    )
    width: Annotated[StrictInt, Field(ge=1, le=8)] = Field(
        default=1, description="children of a node, for drafters head and mtp; 1 = chains"
    )

    def model_post_init(self, _context: object) -> None:
        _one_of(self.groups or None, self.experts)


class Escalation(Params):
    """Change of an answer to another mode, where its running confidence, the geometric mean of the
    probabilities that the model gave to its latest tokens, falls below a threshold."""

    below: Annotated[Number, Field(ge=0, le=1)] = Field(
        description="change to the other mode where the running confidence is below this"
    )
    window: Annotated[StrictInt, Field(ge=1, le=65_536)] = Field(
        default=16, description="latest tokens that the running confidence is a mean over"
    )
    to: Name = Field(default="deep", description="the mode to change to")
    how: Literal["recompute", "keep", "restart"] = Field(
        default="recompute",
        description="recompute: the text is read again with the other mode's experts, which is exact; "
        "keep: the KV of the first mode stays, which is lossy; restart: the answer is dropped and the "
        "other mode begins anew, with its thinking",
    )
    within: Positive | None = Field(
        default=None,
        description="look at this many first tokens only, which a stream holds back where "
        "the answer may be dropped; None = at all of them",
    )

    def model_post_init(self, _context: object) -> None:
        if self.within is not None and self.within < self.window:
            raise ValueError(
                f"within={self.within} must be at least window={self.window}: earlier there is no mean"
            )


class Phase(Params):
    """Settings of the thought, or of the answer, that differ from the whole text's. A field that is not given is the
    call's own; one that is given holds in this part whatever the call says of the whole."""

    temperature: Temperature | None = Field(default=None, description="0 = greedy")
    top_k: TopK | None = Field(default=None, description="keep the k likeliest tokens")
    top_p: TopP | None = Field(default=None, description="keep this much probability")
    min_p: MinP | None = Field(default=None, description="drop tokens below this share")
    repetition_penalty: Repetition | None = Field(default=None, description="of tokens in the text")
    presence_penalty: Penalty | None = Field(default=None, description="of tokens generated before")
    frequency_penalty: Penalty | None = Field(default=None, description="for each time one was")
    speculation: Annotated[
        Accepts[Speculation | None, Speculation | Fields | str | None],
        BeforeValidator(lambda name: {"drafter": name} if isinstance(name, str) else name),
    ] = Field(default=NONE, description="how this part is drafted; a text is a drafter's name")

    def model_post_init(self, _context: object) -> None:
        for name in ("accept", "step_score") if self.speculation else ():
            given = getattr(self.speculation, name)
            if given != Speculation.model_fields[name].default:
                said = "must be left out in a part: it holds for whole answers"
                raise ValueError(f"speculation.{name}={given!r} {said}")

    def over(self, params: SamplingParams) -> SamplingParams:
        """The sampling of a call, with the fields given here."""
        given = self.model_dump(exclude={"speculation"}, exclude_none=True)
        return params.model_copy(update=given) if given else params


# settings that true switches on, with their defaults
SWITCH = BeforeValidator(lambda value: {} if value is True else None if value is False else value)


class Loop(Params):
    """Loop detection: a text that repeats itself word for word, again and again."""

    times: Annotated[StrictInt, Field(ge=2, le=1000)] = Field(
        default=4, description="equal runs of tokens in a row that make a loop"
    )
    least: Annotated[StrictInt, Field(ge=16, le=MOST)] = Field(
        default=40, description="least number of tokens in the repeats"
    )
    stale: Positive | None = Field(
        default=200,
        description="also a loop: this many tokens in a row, each run of 8 of which came before; None = never",
    )
    answer: StrictBool = Field(default=False, description="also end an answer that loops")


class AnswerConfidence(Params):
    """Early exit of a thought whose answer is settled: probes in between decode the answer as if the thought ended, and
    several in a row are equal."""

    every: Positive = Field(default=32, description="tokens of thought between two probes")
    tokens: Annotated[StrictInt, Field(ge=1, le=64)] = Field(
        default=8, description="first tokens of the answer that are compared"
    )
    times: Annotated[StrictInt, Field(ge=1, le=1000)] = Field(
        default=2, description="equal answers in a row that end the thought"
    )
    sure: Annotated[Number, Field(ge=0, le=1)] = Field(
        default=0.9,
        description="least probability of each of these tokens, for the answer to count; 0 = any answer",
    )
    prefix: Text = Field(
        default="",
        description="start of the answer in a probe, not in the real one: 'The answer is'",
    )

    def model_post_init(self, _context: object) -> None:
        if self.times < 2 and not self.sure:
            raise ValueError("times=1 needs sure above 0: else the first answer ends the thought")


class Mode(Params):
    """Mode of a request's thinking: how many experts run, whether it reasons, its defaults.

    With `base` it is another mode with some fields changed: `Mode(base="deep", thinking_budget=64)`.
    """

    name: Name = Field(default="custom", description="shown in metrics")
    base: Name | None = Field(default=None, description="the preset that gives all other fields")
    effort: Effort | None = Field(
        default=None,
        description="none to max: each stands for a preset with a budget, and for a template's nearest level",
    )
    auto: StrictBool = Field(
        default=False,
        description="another preset is taken for each request, by what is asked; the other fields "
        "given hold in all of them",
    )
    groups: Count | None = Field(
        default=None, description="routed groups per token; None = all, 0 = shared experts only"
    )
    experts: Count | None = Field(
        default=None,
        description="routed experts per token of a model without groups; None = all that its router "
        "chooses, 0 = shared experts only, where it has some",
    )
    thinking: Thinking = Field(default="auto", description="off, on, or auto: the model decides")
    thinking_budget: Count | None = Field(
        default=None,
        description="most tokens between the thinking tags, then the thought is closed; None = any",
    )
    thinking_soft: Count = Field(
        default=0,
        description="last tokens of the budget, over which the closing tag becomes likelier; "
        "0 = the budget is hard only",
    )
    closing: Text | None = Field(
        default=None,
        description="what a thought that is closed for the model says last, before the closing tag",
    )
    loop: Annotated[Accepts[Loop | None, Loop | Fields | bool | None], SWITCH] = Field(
        default=NONE,
        description="close thoughts that go round in circles; true = as is usual, None or false = never",
    )
    confidence: Annotated[
        Accepts[AnswerConfidence | None, AnswerConfidence | Fields | bool | None], SWITCH
    ] = Field(
        default=NONE,
        description="close thoughts whose answer is settled; true = as is usual, None or false = never",
    )
    answer_room: Count | Literal["auto"] | None = Field(
        default=None,
        description="so many of max_tokens stay for the answer: the thought is closed in time, and its end "
        "never ends the answer; auto = a quarter, at most 256; None = any thought may use up all",
    )
    warn_at: Annotated[Number, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="once this share of the thinking budget is used, `warning` is put in where the next "
        "sentence ends, unless the model is about to close; it counts in the budget; None = never",
    )
    warning: Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)] = Field(
        default=WARNING, description="what is put in then"
    )
    turn_budget: Count | None = Field(
        default=None,
        description="most tokens of thought for one turn of the user, over all calls of tools in it",
    )
    thought: Accepts[Phase | None, Phase | Fields | None] = Field(
        default=NONE, description="sampling and drafts inside thoughts, where they are other"
    )
    answer: Accepts[Phase | None, Phase | Fields | None] = Field(
        default=NONE, description="sampling and drafts outside of thoughts, where they are other"
    )
    sampling: Accepts[SamplingParams | None, SamplingParams | Fields | None] = Field(
        default=NONE, description="used when a call gives none"
    )
    speculation: Accepts[Speculation | None, Speculation | Fields | None] = Field(
        default=NONE, description="if a call says 'auto'"
    )
    latency_ms: Number | None = Field(
        default=None,
        description="target of the time to the first token, and of each after it, in milliseconds",
    )
    may_shorten: tuple[Literal["draft", "groups", "experts"], ...] = Field(
        default=(),
        description="what may be cut to keep the target; groups, and experts of a model without "
        "groups, are lossy",
    )
    escalate: Accepts[Escalation | None, Escalation | Fields | None] = Field(
        default=NONE, description="change to another mode where the model is unsure; None = never"
    )
    bounds: tuple[str, ...] | None = Field(default=None, description="no call gets more of these")
    description: Text = Field(default="", description="one line for people")
    _held: tuple[str, ...] = ()  # bounds that a call met

    @field_validator("latency_ms", mode="before")
    @classmethod
    def _in_range(cls, value: object) -> object:
        least, most = LATENCY_MS
        if isinstance(value, int | float) and not least <= value <= most:  # so for nan and 10**400
            raise ValueError(f"a target should be from {least} to {most}")
        return value

    @property
    def routed(self) -> int | None:
        """Routed groups, or in a model without groups routed experts, that run per token; None = all."""
        return self.experts if self.groups is None else self.groups

    def model_post_init(self, _context: object) -> None:
        _one_of(self.groups, self.experts)
        most = self.thinking_budget
        if self.base is None and self.effort is None and self.thinking_soft > (most or 0):
            limit = "needs a thinking_budget" if most is None else f"exceeds thinking_budget={most}"
            raise ValueError(f"thinking_soft={self.thinking_soft} {limit}")


def _one_of(groups: int | None, experts: int | None) -> None:
    """Refuse two counts of what runs, of which every model has one."""
    if groups is not None and experts is not None:
        raise ValueError(
            f"groups={groups} and experts={experts} are both given: groups is for models whose experts "
            "are in groups, experts for all others"
        )
