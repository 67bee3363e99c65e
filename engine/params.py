"""What a user may ask for: grammar, sampling, speculation, mode. Every field is described and bounded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field, StrictBool, StrictFloat, StrictInt, field_validator

# Readers take these from here, too.
from fastslow.engine.checked import Params as Params  # noqa: PLC0414
from fastslow.engine.checked import kept_as
from fastslow.engine.checked import nearest as nearest  # noqa: PLC0414
from fastslow.engine.checked import sentence as sentence  # noqa: PLC0414
from fastslow.engine.checked import shown as shown  # noqa: PLC0414

Number = StrictFloat  # takes an int too, but neither a bool nor text
MOST = 2**31 - 1  # of any count: more means no more than "all", and sums of such numbers stay exact
Count = Annotated[StrictInt, Field(ge=0, le=MOST)]
Positive = Annotated[StrictInt, Field(ge=1, le=MOST)]
Thinking = Literal["off", "on", "auto"]
Accept = Literal["auto", "token", "block", "reproducible", "lossy-stepwise"]
TokenId = Annotated[StrictInt, Field(ge=0)]
MOST_STOPS, LONGEST_STOP = 64, 1000
LONGEST_NAME, LONGEST_TEXT = 256, 1000
Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
Stops = tuple[Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)], ...]

CHANGED = "*"  # ends the name of a preset that a call changed
LATENCY_MS = 0.001, 86_400_000  # up to a day
MOST_PRIORITY = 1000  # that a call may give, and its negative
LONGEST_GRAMMAR, MOST_CHOICES = 262_144, 1000  # characters, texts
Schema = str | bool | Mapping[str, Any]
GrammarText = Annotated[str, Field(min_length=1, max_length=LONGEST_GRAMMAR)]
Choices = Annotated[tuple[GrammarText, ...], Field(min_length=1, max_length=MOST_CHOICES)]


class GrammarSpec(Params):
    """What an answer has to look like: exactly one of the fields. A schema is kept as its JSON text."""

    json_schema: Annotated[Schema | None, kept_as(GrammarText | None)] = Field(
        default=None, description="a JSON schema, or its text: the answer is JSON of that form"
    )
    json_object: Literal[True] | None = Field(default=None, description="any JSON object")
    regex: GrammarText | None = Field(
        default=None, description="the whole answer matches this expression"
    )
    choice: Annotated[Sequence[str] | None, kept_as(Choices | None)] = Field(
        default=None, description="the answer is one of these texts"
    )
    lark: GrammarText | None = Field(
        default=None, description="a grammar in llguidance's form of Lark"
    )
    gbnf: GrammarText | None = Field(
        default=None, description="a grammar in the GBNF of llama.cpp, or in Lark"
    )

    @field_validator("json_schema", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        if value is None or isinstance(value, str):
            return value
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"it is no JSON ({shown(str(error))})") from None

    @property
    def kind(self) -> str:
        """The field that is given."""
        return self._given()[0]

    def model_post_init(self, _context: object) -> None:
        given = self._given()
        if len(given) != 1:
            raise ValueError(
                f"a grammar has exactly one of {', '.join(type(self).model_fields)}; given are {given or None}"
            )
        if sum(map(len, self.choice or ())) > LONGEST_GRAMMAR:
            raise ValueError(f"choice holds more than {LONGEST_GRAMMAR} characters")

    def _given(self) -> list[str]:
        return [name for name, value in self if value is not None]


class SamplingParams(Params):
    """How tokens are drawn and when an answer ends. The names are those of vLLM and OpenAI."""

    max_tokens: Positive = Field(default=256, description="most tokens to answer")
    min_tokens: Count = Field(
        default=0, description="end tokens and stop strings are ignored before this many tokens"
    )
    temperature: Annotated[Number, Field(ge=0, le=100)] = Field(
        default=0.0, description="0 = greedy; else logits are divided by it"
    )
    top_k: Annotated[StrictInt, Field(ge=-1, le=MOST)] = Field(
        default=-1, description="keep the k likeliest tokens; -1 or 0 = all"
    )
    top_p: Annotated[Number, Field(gt=0, le=1)] = Field(
        default=1.0, description="keep the smallest set of tokens with this much probability"
    )
    min_p: Annotated[Number, Field(ge=0, le=1)] = Field(
        default=0.0, description="drop tokens below this share of the likeliest one's probability"
    )
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=100)] = Field(
        default=1.0,
        description="divides (or multiplies, if negative) logits of tokens seen in the text",
    )
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] = Field(
        default=0.0, description="subtracted once from tokens seen in the answer"
    )
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] = Field(
        default=0.0, description="subtracted for each time a token was seen in the answer"
    )
    logit_bias: dict[int, Annotated[Number, Field(ge=-100, le=100)]] | None = Field(
        default=None, description="token id -> value added to its logit"
    )
    stop: Annotated[str | Sequence[str] | None, kept_as(Stops)] = Field(
        default=(),
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
    grammar: Annotated[GrammarSpec | Mapping[str, Any] | None, kept_as(GrammarSpec | None)] = Field(
        default=None, description="what the answer, after a thought, has to look like"
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

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop`, as it is kept."""
        return cast(tuple[str, ...], self.stop)

    @property
    def grammar_spec(self) -> GrammarSpec | None:
        """`grammar`, as it is kept."""
        return cast(GrammarSpec | None, self.grammar)

    def model_post_init(self, _context: object) -> None:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens={self.min_tokens} exceeds max_tokens={self.max_tokens}")


class Speculation(Params):
    """How drafts are made. `nodes=0` or drafter "off" is plain decoding."""

    drafter: Annotated[str, Field(max_length=100)] = Field(
        default="auto",
        description="a drafter's name, or off; a+b: b where a has no draft; a|b: each where it pays, "
        "side by side; auto = suffix|head where the model has a head, else suffix",
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
        description="a trained head's file, or the folder or hub name of a published EAGLE-3 head; "
        "None = the one of the model",
    )
    corpus: str | Path | None = Field(
        default=None, description="stored answers for drafter 'suffix', see `fastslow corpus`"
    )
    width: Annotated[StrictInt, Field(ge=1, le=8)] = Field(
        default=1, description="children of a node, for drafters head, self and model; 1 = chains"
    )

    def model_post_init(self, _context: object) -> None:
        _one_of(self.groups or None, self.experts)


class Escalation(Params):
    """When an answer continues in another mode: its running confidence, the geometric mean of the
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


class Mode(Params):
    """How a request thinks: how many experts run, whether it reasons, its defaults.

    With `base` it is another mode with some fields changed: `Mode(base="deep", thinking_budget=64)`.
    """

    name: Name = Field(default="custom", description="shown in metrics")
    base: Name | None = Field(
        default=None, description="the preset whose fields hold where none is given"
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
    early_exit: StrictBool = Field(
        default=False, description="close thoughts that go round in circles or have settled"
    )
    sampling: SamplingParams | None = Field(default=None, description="used when a call gives none")
    speculation: Speculation | None = Field(
        default=None, description="used when a call says 'auto'"
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
    escalate: Escalation | None = Field(
        default=None, description="change to another mode where the model is unsure; None = never"
    )
    description: Text = Field(default="", description="one line for people")

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
        if self.base is None and self.thinking_soft > (most or 0):
            limit = "needs a thinking_budget" if most is None else f"exceeds thinking_budget={most}"
            raise ValueError(f"thinking_soft={self.thinking_soft} {limit}")


def _one_of(groups: int | None, experts: int | None) -> None:
    """Refuse two counts of what runs, of which every model has one."""
    if groups is not None and experts is not None:
        raise ValueError(
            f"groups={groups} and experts={experts} are both given: groups is for models whose experts "
            "are in groups, experts for all others"
        )
