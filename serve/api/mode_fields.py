"""Fields by which a client says how the model is to think: every name that is in use, as one mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from fastslow.engine.params import LATENCY_MS, LONGEST_TEXT, MOST, Effort, Number, shown
from fastslow.engine.text.switches import nearest_level
from fastslow.serve.api.config import ServerSettings
from fastslow.serve.api.engine import ModelCard

Tokens = Annotated[StrictInt, Field(ge=0, le=MOST)]
BUDGETS = "thinking_budget", "thinking_token_budget"
SWITCHES = "enable_thinking", "thinking"  # variables of templates that are a mode's business here
STEERING = (
    *("loop", "confidence", "answer_room", "warn_at", "warning"),
    *("turn_budget", "thought", "answer"),
)
DIRECT = "groups", "experts", "latency_ms", *STEERING  # fields of a mode, under its names
MOST_ASKED = {"tokens": 16, "times": 16, "prefix": 64}  # of a client's `confidence`
MOST_ROWS = 4  # that its questions may take for each token of thought
OWN = "speculation", "sampling"  # fields of a mode that are fields of the request itself
OWN_NAME = "custom"  # of every mode that a client names itself


def optional(description: str) -> Any:
    """A field that clients may leave out, or give as null."""
    return Field(default=None, description=description)


BUDGET = optional("most tokens of thought; both names mean the same")


class ThinkingField(BaseModel):
    """Anthropic's form, which vLLM takes too."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["enabled", "disabled", "adaptive"] = "enabled"
    budget_tokens: Tokens | None = None
    display: Literal["summarized", "omitted"] | None = None


class ThinkingConfig(BaseModel):
    """Gemini's form."""

    model_config = ConfigDict(extra="forbid")

    thinking_level: Effort | None = optional("the same as reasoning_effort")
    thinking_budget: Annotated[StrictInt, Field(ge=-1, le=MOST)] | None = optional(
        "most tokens of thought; -1 leaves it to the server, as adaptive thinking does"
    )
    include_thoughts: StrictBool | None = optional("false leaves the thought out of the answer")


class GoogleField(BaseModel):
    model_config = ConfigDict(extra="forbid")

    thinking_config: ThinkingConfig = Field(default_factory=ThinkingConfig)


class ExtraBody(BaseModel):
    """Google's fields, where its endpoint for OpenAI's clients has them. Python's client sends such a field
    if its own `extra_body` holds one."""

    model_config = ConfigDict(extra="forbid")

    google: GoogleField | None = None


class ReasoningField(BaseModel):
    """OpenRouter's form."""

    model_config = ConfigDict(extra="forbid")

    effort: Effort | None = None
    max_tokens: Tokens | None = None
    enabled: StrictBool | None = None
    exclude: StrictBool | None = optional("leave the thought out of the answer")
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ModeFields(BaseModel):
    """Fields for how the model thinks. What is not said is the server's default mode."""

    mode: str | dict[str, Any] | None = optional(
        "a preset's name (fast, deep, auto, ...), or the fields of a mode"
    )
    groups: Tokens | None = optional("routed groups that run for a token")
    experts: Tokens | None = optional("the same for a model whose experts are in no groups")
    latency_ms: Annotated[Number, Field(ge=LATENCY_MS[0], le=LATENCY_MS[1])] | None = optional(
        "target of the time to the first token, and of each later one"
    )
    reasoning_effort: Effort | None = optional("the server's settings say which mode each one is")
    reasoning: ReasoningField | None = None
    thinking: ThinkingField | None = None
    google: GoogleField | None = None
    extra_body: ExtraBody | None = None
    thinking_budget: Tokens | None = BUDGET
    thinking_token_budget: Tokens | None = BUDGET
    answer_room: Tokens | Literal["auto"] | None = optional(
        "tokens of max_tokens that stay for the answer: the thought is closed in time"
    )
    loop: StrictBool | dict[str, Any] | None = optional(
        "close thoughts that go round in circles: true, or the fields of a `Loop`"
    )
    confidence: StrictBool | dict[str, Any] | None = optional(
        "close thoughts whose answer is settled: true, or the fields of an `AnswerConfidence`"
    )
    warn_at: Annotated[Number, Field(gt=0, lt=1)] | None = optional(
        "share of the thinking budget, after which the thought is told to come to its end"
    )
    warning: Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)] | None = optional(
        "the words of that"
    )
    turn_budget: Tokens | None = optional(
        "most tokens of thought since the user's latest message, over all calls of tools"
    )
    thought: dict[str, Any] | None = optional("sampling and speculation inside thoughts")
    answer: dict[str, Any] | None = optional("sampling and speculation outside of thoughts")
    keep_thoughts: StrictBool | None = optional(
        "keep the thoughts of earlier turns in the prompt, so that what was read before is "
        "found in the prefix cache; without it, as the server's settings say"
    )
    chat_template_kwargs: dict[str, Any] | None = optional(
        "variables of the chat template, enable_thinking among them"
    )

    def mode_and_variables(
        self, card: ModelCard, settings: ServerSettings, default_mode: str
    ) -> tuple[str | dict[str, Any], dict[str, Any]]:
        """The mode as the engine takes it, and the variables of the chat template."""
        for own in (self.confidence, isinstance(self.mode, dict) and self.mode.get("confidence")):
            _check_questions(own)
        efforts = {name: value for name, value in self.efforts().items() if value is not None}
        effort = _same(efforts)
        mode, variables = self.mode, self._variables(card, effort)
        if effort is not None and not (mode is not None and card.efforts):
            mode = _agreed(mode, next(iter(efforts)), effort, settings.efforts[effort])
        fields = _fields(default_mode if mode is None else mode)
        fields.setdefault("base", default_mode)
        budget, thinks = self._budget(), self._thinks(efforts)
        if thinks is False and budget:
            raise ValueError(f"thinking is off, and a budget of {budget} tokens is for thinking")
        said = budget is not None or thinks is False
        if said and effort is not None and self.mode is None:
            fields.pop("thinking_budget", None)  # the effort's own, which is only a usual one
        wishes = {name: getattr(self, name) for name in DIRECT}
        wishes["thinking"] = {None: None, True: "on", False: "off"}[thinks]
        for name, value in {**wishes, "thinking_budget": budget}.items():
            if value is not None and fields.setdefault(name, value) != value:
                raise ValueError(
                    f"{name}={shown(value)} and mode.{name}={shown(fields[name])} contradict"
                )
        return fields["base"] if len(fields) == 1 else fields, variables

    def keeping_thoughts(self, card: ModelCard, settings: ServerSettings) -> dict[str, Any]:
        """Return the `GenerateOptions` by which a chat keeps its thoughts: the template's own switch, which writes them
        as the model has learnt them; without one, the engine puts them back into the prompt."""
        keeps = settings.keep_thoughts if self.keep_thoughts is None else self.keep_thoughts
        if card.keeps_thoughts is None:
            return {"keep_thoughts": keeps}
        if self.keep_thoughts is None and not keeps:
            return {}
        name, keeping = card.keeps_thoughts
        return {"chat_template_kwargs": {name: keeping is keeps}}

    @property
    def hides_thought(self) -> bool:
        """True where the thought is to be left out of the answer."""
        hidden = self.thinking is not None and self.thinking.display == "omitted"
        hidden = hidden or any(one.include_thoughts is False for one in self._gemini.values())
        return hidden or (self.reasoning is not None and self.reasoning.exclude is True)

    @property
    def adaptive(self) -> str | None:
        """The field that leaves to the server whether and how long it thinks."""
        if self.thinking is not None and self.thinking.type == "adaptive":
            return "thinking.type='adaptive'"
        found = (name for name, one in self._gemini.items() if one.thinking_budget == -1)
        return next((f"{name}.thinking_budget=-1" for name in found), None)

    def efforts(self) -> dict[str, Effort | None]:
        """The efforts that are given, by the fields that give them. Protocols add their own to these."""
        other = None if self.reasoning is None else self.reasoning.effort
        levels = {
            f"{name}.thinking_level": one.thinking_level for name, one in self._gemini.items()
        }
        return {"reasoning_effort": self.reasoning_effort, "reasoning.effort": other, **levels}

    @property
    def _gemini(self) -> dict[str, ThinkingConfig]:
        """Gemini's fields, by where they are."""
        inner = None if self.extra_body is None else self.extra_body.google
        places = {"google.thinking_config": self.google, "extra_body.google.thinking_config": inner}
        return {name: one.thinking_config for name, one in places.items() if one is not None}

    def _budget(self) -> Any:
        wishes: dict[str, Any] = {name: getattr(self, name) for name in BUDGETS}
        if self.thinking is not None:
            wishes["thinking.budget_tokens"] = self.thinking.budget_tokens
        if self.reasoning is not None:
            wishes["reasoning.max_tokens"] = self.reasoning.max_tokens
        for name, one in self._gemini.items():
            if one.thinking_budget != -1:
                wishes[f"{name}.thinking_budget"] = one.thinking_budget
        return _same(wishes)

    def _thinks(self, efforts: Mapping[str, Effort]) -> Any:
        given = self.chat_template_kwargs or {}
        wishes = {f"chat_template_kwargs.{name}": given.get(name) for name in SWITCHES}
        for name, value in wishes.items():
            if not isinstance(value, bool | None):
                raise ValueError(f"{name}={shown(value)} must be true or false")
        if self.thinking is not None and self.thinking.type != "adaptive":
            wishes[f"thinking.type={self.thinking.type!r}"] = self.thinking.type == "enabled"
        if self.reasoning is not None:
            wishes["reasoning.enabled"] = self.reasoning.enabled
        wishes |= {f"{name}='none'": False for name, one in efforts.items() if one == "none"}
        thinks = _same(wishes)
        if thinks is False and self.adaptive:
            raise ValueError(
                f"thinking is off, and {self.adaptive} lets the server choose: give one"
            )
        return thinks

    def _variables(self, card: ModelCard, effort: Effort | None) -> dict[str, Any]:
        given = self.chat_template_kwargs or {}
        variables = {name: value for name, value in given.items() if name not in SWITCHES}
        if effort is not None and effort != "none" and card.efforts:
            wishes = {
                "reasoning_effort": nearest_level(effort, card.efforts),
                "chat_template_kwargs.reasoning_effort": variables.get("reasoning_effort"),
            }
            variables["reasoning_effort"] = _same(wishes)
        return variables


def _fields(mode: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(mode, str):
        return {"base": mode}
    if own := next((name for name in mode if name in OWN), None):
        raise ValueError(f"mode.{own} must be left out: the request itself has such a field")
    if not isinstance(mode.get("base"), str | None):
        raise ValueError(f"mode.base={shown(mode['base'])} must be a preset's name")
    named = {"name": OWN_NAME} if "name" in mode else {}  # any number of names is no use to figures
    kept = {name: value for name, value in mode.items() if value is not None or name != "base"}
    return kept | named


def _check_questions(wish: Any) -> None:
    """ValueError: a client's questions would cost too much. Other errors are the engine's to say."""
    given = wish if isinstance(wish, Mapping) else {}
    every, tokens = given.get("every", 32), given.get("tokens", 8)
    if isinstance(every, int) and isinstance(tokens, int) and tokens > MOST_ROWS * every:
        said = f"confidence.every={every} must be at least {-(-tokens // MOST_ROWS)}"
        raise ValueError(f"{said} with tokens={tokens}")
    for name, most in MOST_ASKED.items():
        size = len(value) if isinstance(value := given.get(name), str) else value
        if isinstance(size, int) and size > most:
            said = f"confidence.{name}={shown(value)} is above {most}"
            raise ValueError(f"{said}, the most that clients may ask")


def _agreed(
    mode: str | dict[str, Any] | None, field: str, effort: str, meant: str | dict[str, Any]
) -> str | dict[str, Any]:
    """The mode of an effort, which must be the one that is named beside it."""
    base = meant if isinstance(meant, str) else meant.get("base")
    if mode is None or mode in (meant, base):
        return meant
    raise ValueError(
        f"mode={shown(mode)} and {field}={effort!r}, which here is mode {base!r}, contradict "
        "each other: give one of them"
    )


def _same(wishes: Mapping[str, Any]) -> Any:
    """The one value that is wished, under whatever names; a name may say what was given for it."""
    given = [
        (name if "=" in name else f"{name}={shown(value)}", value)
        for name, value in wishes.items()
        if value is not None
    ]
    for name, value in given[1:]:
        if value != given[0][1]:
            raise ValueError(f"{given[0][0]} and {name} contradict each other: give one of them")
    return given[0][1] if given else None
