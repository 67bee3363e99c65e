"""Fields of a request that every protocol shares: sampling, drafts, grammars, limits, and the model's name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    StrictBool,
    StrictInt,
    ValidationError,
    model_validator,
)

from fastslow.draft.registry import DRAFTERS, split_names
from fastslow.engine.params import MOST, Number, SamplingParams, Speculation, nearest, shown
from fastslow.engine.text.messages import Message
from fastslow.request.options import ClientOptions, GenerateOptions
from fastslow.serve.api.config import MOST_TEMPERATURE, ServerSettings
from fastslow.serve.api.engine import ModelCard
from fastslow.serve.api.errors import ApiError
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.api.limits import Caller
from fastslow.serve.api.mode_fields import ModeFields, Tokens, optional

FILES = "model", "head", "corpus"  # fields of a speculation that are the operator's
KNOWN = "; ".join(f"{name} ({kind.help})" for name, kind in DRAFTERS.items())
OPEN = [name for name in Speculation.model_fields if name not in FILES]
KINDS = {"json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "gbnf"}
"""Grammars by the ends of their fields' names, and as `SamplingParams.grammar` names them; gbnf reads Lark, too."""
AUTO = "auto"  # the mode that chooses for each request
MODE = ":"  # stands between a model's name and a mode's
Ignored = Annotated[Any, Field(description="accepted; has no effect here")]
Penalty = Annotated[Number, Field(ge=-2, le=2)]
# a text is read as JSON, whatever it holds
Schema = Annotated[str, Field(max_length=2**17)] | dict[str, Any]
Choices = Annotated[list[str], Field(min_length=1, max_length=1000, fail_fast=True)]
SEEDS = 2**63  # a negative seed means the one that has the same 63 bits
MOST_BIASES = 20_000  # that are looked at; the settings allow fewer
MOST_ERRORS = 100  # of a body; to write many takes long
SAMPLED = [name for name in SamplingParams.model_fields if name != "grammar"]


class Fields(BaseModel):
    """The body of a request. A name that it does not have is refused, with the nearest one that it has."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        for name in data if isinstance(data, Mapping) else ():
            if name not in cls.model_fields:
                hint = nearest(name, cls.model_fields).partition("; known")[0]  # not all of them
                raise ValueError(f"field {shown(name)} is unknown{hint}")
        return data

    @model_validator(mode="wrap")
    @classmethod
    def _few_errors(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            if (count := error.error_count()) <= MOST_ERRORS:
                raise
            raise ValueError(
                f"the body has {count} errors; at most {MOST_ERRORS} are looked at"
            ) from None


class StructuredOutputs(BaseModel):
    """vLLM's newer form of a grammar."""

    model_config = ConfigDict(extra="forbid")

    json_: Schema | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: StrictBool | None = None


class GrammarFields(BaseModel):
    """Fields for what an answer must match; at most one of them is given."""

    guided_json: Schema | None = optional("a JSON schema")
    guided_regex: str | None = optional("a regular expression")
    guided_choice: Choices | None = optional("one of these texts")
    guided_grammar: str | None = optional("a grammar, in Lark's or GBNF's form")
    structured_outputs: StructuredOutputs | None = None

    def grammar(self, most: int) -> dict[str, Any] | None:
        """The grammar that the answer must match, of at most this many bytes, as `SamplingParams.grammar` has it."""
        found = dict(self.grammars())
        if len(found) > 1:
            raise ValueError(f"{' and '.join(found)} are both given, and an answer has one grammar")
        for name, grammar in found.items():
            size = len(json.dumps(grammar, ensure_ascii=False).encode())
            if size > most:
                raise ValueError(f"{name} has {size} bytes; at most {most} are taken")
            return grammar
        return None

    def grammars(self) -> list[tuple[str, dict[str, Any]]]:
        """The grammars that are given, by the fields that give them. Protocols add their own to these."""
        newer = (self.structured_outputs or StructuredOutputs()).model_dump(by_alias=True)
        given = [(f"guided_{name}", name, getattr(self, f"guided_{name}")) for name in KINDS]
        given += [(f"structured_outputs.{name}", name, newer[name]) for name in KINDS]
        found = [(at, {KINDS[n]: _grammar(at, n, v)}) for at, n, v in given if v is not None]
        if newer["json_object"]:
            found.append(("structured_outputs.json_object", {"json_object": True}))
        return found


def _grammar(field: str, name: str, value: Any) -> Any:
    if not value:
        raise ValueError(f"{field}={shown(value)} must not be empty")
    if name != "json" or not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError(f"{field}={shown(value)} is no JSON") from None


def format_grammar(
    field: str, kind: str, schema: dict[str, Any] | None, place: str = "schema"
) -> list[tuple[str, dict[str, Any]]]:
    """The grammar of a `field` that holds the form of an answer, such as a response_format; none for "text". kind:
    text, json_object or json_schema. schema: of the last kind. place: of the schema in the field."""
    if kind == "text":
        return []
    if kind == "json_object":
        return [(field, {"json_object": True})]
    if schema is None:
        raise ValueError(f"field '{field}.{place}' is missing")
    return [(field, {"json_schema": schema})]


def _bounded(biases: object) -> object:
    if isinstance(biases, dict) and len(biases) > MOST_BIASES:
        raise ValueError(
            f"logit_bias has {len(biases)} entries; at most {MOST_BIASES} are looked at"
        )
    return biases


Bias = Annotated[Number, Field(ge=-100, le=100)]
Biases = dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Bias]


class SharedFields(ModeFields, GrammarFields, ClientOptions, Fields):
    """Fields that all protocols take: the model, sampling by the names of OpenAI and vLLM, and our own."""

    model: Annotated[str, Field(max_length=256)] | None = optional(
        "a name of /v1/models; NAME:MODE stands for a model in a mode"
    )
    speculation: str | dict[str, Any] | None = optional(
        f"a drafter: {KNOWN}; off (plain decoding); several with + or |; or an "
        f"object of {', '.join(OPEN)}. It changes the speed, and the answer only under a lossy `accept`"
    )
    timeout: Annotated[Number, Field(gt=0)] | None = optional(
        "seconds after which the answer ends with what there is"
    )
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = optional(
        "prefixes and answers are shared with the same salt only"
    )
    temperature: Annotated[Number, Field(ge=0, le=MOST_TEMPERATURE)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=-1, le=MOST)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[Biases, BeforeValidator(_bounded)] | None = None
    seed: Annotated[StrictInt, Field(ge=-SEEDS, lt=SEEDS)] | None = None
    min_tokens: Tokens | None = None
    stop_token_ids: Annotated[list[Tokens], Field(max_length=1000, fail_fast=True)] | None = None
    ignore_eos: StrictBool | None = None

    def sampling(self) -> dict[str, Any]:
        """Fields of `SamplingParams`, by their names there; None = not given."""
        given = {name: getattr(self, name, None) for name in SAMPLED}
        return given | {"seed": None if self.seed is None else self.seed % SEEDS}

    def as_request(
        self,
        prompt: str | Sequence[int] | Sequence[Message],
        who: Caller,
        card: ModelCard,
        settings: ServerSettings,
        *,
        id: str,
        default_mode: str | None = None,
        streamed: bool = True,
        prompts: int = 1,
        **options: Any,
    ) -> GenerateRequest:
        """Make the engine's request. default_mode: where the client names none; None = the settings', or with adaptive
        thinking "auto". prompts: of this call, for each of which there is such a request. options: further
        `GenerateOptions`."""
        if default_mode is None and self.adaptive and AUTO in (who.limits.modes or card.modes):
            default_mode = AUTO
        default_mode = default_mode or settings.default_mode
        mode, variables = self.mode_and_variables(card, settings, default_mode)
        every = {**self.sampling(), "grammar": self.grammar(settings.grammar_bytes)}
        given = {name: value for name, value in every.items() if value is not None}
        _check_limits(given, settings)
        is_chat = bool(prompt) and isinstance(prompt[0], Mapping)
        if variables and not is_chat:
            raise ValueError("chat_template_kwargs are for chats, and this prompt is none")
        kept = self.keeping_thoughts(card, settings) if is_chat else {}
        variables = kept.pop("chat_template_kwargs", {}) | variables
        fields: dict[str, Any] = {
            "sampling": given,
            "sampling_defaults": settings.sampling_of(card) | options.pop("sampling_defaults", {}),
            "mode": _with_open_drafts(mode, settings),
            "speculation": _speculation_of(self.speculation, settings),
            "timeout": self._seconds(settings),
            "memory_key": who.memory(self.cache_salt),
            "share": who.share,
            "chat_template_kwargs": variables or None,
            **{name: getattr(self, name) for name in ClientOptions.model_fields},
        }
        made = GenerateOptions(**{**fields, **kept, **options})
        return GenerateRequest(id, prompt, who.limited(made, card, prompts), streamed)

    def _seconds(self, settings: ServerSettings) -> float:
        most = settings.longest_timeout
        if self.timeout is not None and self.timeout > most:
            raise ValueError(f"timeout={shown(self.timeout)} must be at most {most:g} seconds")
        return min(settings.timeout, most) if self.timeout is None else self.timeout


def served_mode(model: str | None, card: ModelCard, settings: ServerSettings) -> str | None:
    """The mode that a model's name holds; None: it holds none."""
    if model is None:
        return None
    name, mode = model, None
    if model not in (card.name, *settings.aliases):
        before, _, after = model.rpartition(MODE)
        if before and after in card.modes:
            name, mode = before, after
    if name in (card.name, *settings.aliases) or settings.any_model:
        return mode
    said = f"model={shown(model)} is not served here; this server has {card.name!r}"
    raise ApiError(404, said, param="model", code="model_not_found")


def _speculation_of(
    wish: str | Mapping[str, Any] | None, settings: ServerSettings
) -> str | dict[str, Any] | None:
    """The wish as the engine takes it: no file of the server, and nothing to fetch, that the operator did not
    name at the start."""
    offered = {"head": settings.heads, "model": settings.draft_models}
    if wish is None:
        return None
    fields = {"drafter": _drafter("speculation", wish)} if isinstance(wish, str) else dict(wish)
    for name, value in fields.items():
        if name in FILES and value not in (known := offered.get(name, ())):
            names = f"; it offers {', '.join(known)}" if known else ""
            raise ValueError(
                f"speculation.{name} is a file of the server, and not for clients{names}"
            )
        if name not in Speculation.model_fields:
            raise ValueError(f"speculation has no field {shown(name)}{nearest(name, OPEN)}")
    if not isinstance(wish, str) and "drafter" in fields:
        _drafter("speculation.drafter", fields["drafter"])
    for name in split_names(str(fields.get("drafter", ""))):
        if offered.get(name):  # drafters are called as the fields of what they need
            fields.setdefault(name, offered[name][0])
    if fields == {"drafter": wish}:
        return str(wish)
    Speculation(**fields)  # its own sentence about a value
    return fields


def _with_open_drafts(mode: str | dict[str, Any], settings: ServerSettings) -> str | dict[str, Any]:
    """The mode, whose drafts of the thought and of the answer are such as clients may ask for."""
    fields = {} if isinstance(mode, str) else mode
    for part in ("thought", "answer"):
        own = fields.get(part)
        heat = own.get("temperature") if isinstance(own, Mapping) else None
        if isinstance(heat, int | float) and heat > MOST_TEMPERATURE:
            what = f"{part}.temperature={shown(heat)}"
            raise ValueError(f"{what} must be less than or equal to {MOST_TEMPERATURE}")
        if isinstance(own, Mapping) and isinstance(own.get("speculation"), str | Mapping):
            wish = _speculation_of(own["speculation"], settings)
            fields = {**fields, part: {**own, "speculation": wish}}
    return fields or mode


def _drafter(field: str, name: object) -> str:
    """The engine says which names it knows."""
    known = isinstance(name, str) and len(name) <= 100
    if known and all(part in DRAFTERS or part.isidentifier() for part in split_names(str(name))):
        return str(name)
    raise ValueError(f"{field}={shown(name)} must be a drafter's name, such as 'suffix' or 'off'")


def _check_limits(given: Mapping[str, Any], settings: ServerSettings) -> None:
    """Refuse what the settings allow less of than the engine does."""
    for name in ("logprobs", "prompt_logprobs"):
        if given.get(name, 0) > settings.logprobs:
            raise ValueError(f"{name}={shown(given[name])} must be at most {settings.logprobs}")
    for name, most in (("stop", settings.stops), ("logit_bias", settings.biases)):
        value = given.get(name, ())
        if not isinstance(value, str) and len(value) > most:
            raise ValueError(f"{name} has {len(value)} entries; at most {most} are taken")
