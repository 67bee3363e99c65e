"""Fields of a request that every protocol shares: sampling, drafts, grammars, limits, and the model's name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    model_validator,
)

from fastslow.draft.registry import DRAFTERS, split_names
from fastslow.engine.params import MOST, Number, Speculation, nearest, shown
from fastslow.engine.text.messages import Message
from fastslow.request.options import ClientOptions, GenerateOptions
from fastslow.serve.api.config import ServerSettings
from fastslow.serve.api.engine import ModelCard
from fastslow.serve.api.errors import ApiError
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.api.limits import Caller
from fastslow.serve.api.mode_fields import ModeFields

FILES = "model", "head", "corpus"  # these are the operator's
KNOWN = "; ".join(f"{name} ({kind.help})" for name, kind in DRAFTERS.items())
OPEN = [name for name in Speculation.model_fields if name not in FILES]

Speculate = Annotated[
    str | dict[str, Any] | None,
    Field(
        description=f"a drafter: {KNOWN}; off (plain decoding); several with + or |; or an "
        f"object of {', '.join(OPEN)}. It changes the speed, and the answer only under a lossy `accept`",
    ),
]
GUIDED = {
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "gbnf",
}
STRUCTURED = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "grammar": "gbnf",
    "json_object": "json_object",
}
ANY_OBJECT: dict[str, Any] = {"json_object": True}
MODE = ":"  # stands between a model's name and a mode's
Tokens = Annotated[StrictInt, Field(ge=0, le=MOST)]
OLDER = {
    "functions": "tools, each a {'type': 'function', 'function': {...}}",
    "function_call": "tool_choice",
}
"""Fields that OpenAI has given up, and what stands for them."""
Ignored = Any
"""A field that is accepted and has no effect here."""
NO_EFFECT: Literal["accepted; has no effect here"] = "accepted; has no effect here"
Count = Annotated[StrictInt, Field(ge=1, le=MOST)]
Penalty = Annotated[Number, Field(ge=-2, le=2)]
SEEDS = 2**63  # a negative seed means the one that has the same 63 bits
MOST_BIASES = 20_000  # that are looked at; the settings allow fewer


def speculation_of(wish: str | Mapping[str, Any] | None) -> str | dict[str, Any] | None:
    """The wish as the engine takes it."""
    if wish is None or isinstance(wish, str):
        return None if wish is None else _drafter("speculation", wish)
    for name in wish:
        if name in FILES:
            raise ValueError(f"speculation.{name} is a file of the server, and not for clients")
        if name not in OPEN:
            raise ValueError(f"speculation.{shown(name)[1:-1]} is unknown{nearest(name, OPEN)}")
    fields = dict(wish)
    if "drafter" in fields:
        fields["drafter"] = _drafter("speculation.drafter", fields["drafter"])
    Speculation(**fields)  # its own sentence about a value
    return fields


def _drafter(field: str, name: object) -> str:
    if not isinstance(name, str) or len(name) > 100 or not all(map(_is_name, split_names(name))):
        raise ValueError(
            f"{field}={shown(name)} must be a drafter's name, such as 'suffix' or 'off'"
        )
    return name


def _is_name(part: str) -> bool:
    """No path: the engine says which names it knows."""
    return part in DRAFTERS or part.isidentifier()


class GrammarFields(BaseModel):
    """What an answer must match; at most one of them."""

    guided_json: str | dict[str, Any] | None = Field(default=None, description="a JSON schema")
    guided_regex: str | None = Field(default=None, description="a regular expression")
    guided_choice: Annotated[list[str], Field(fail_fast=True)] | None = Field(
        default=None, min_length=1, max_length=1000, description="one of these texts"
    )
    guided_grammar: str | None = Field(
        default=None, description="a grammar, in Lark's or GBNF's form"
    )
    structured_outputs: dict[str, Any] | None = Field(
        default=None, description="one of json, regex, choice, grammar, and json_object: true"
    )

    def grammar(self, most: int) -> dict[str, Any] | None:
        """The grammar that is asked for, as `SamplingParams.grammar` takes it: one entry, of json_schema,
        json_object, regex, choice or gbnf (which reads Lark, too).
        """
        found = dict(self.grammars())
        if len(found) > 1:
            names = " and ".join(found)
            raise ValueError(f"{names} are both given, and an answer has one grammar")
        for name, grammar in found.items():
            size = len(json.dumps(grammar, ensure_ascii=False).encode())
            if size > most:
                raise ValueError(f"{name} has {size} bytes; at most {most} are taken")
            return grammar
        return None

    def grammars(self) -> list[tuple[str, dict[str, Any]]]:
        """The grammars that are given, by the fields that give them. Protocols add their own to these."""
        given = ((name, kind, getattr(self, name)) for name, kind in GUIDED.items())
        found = [
            (name, _one(name, kind, value)) for name, kind, value in given if value is not None
        ]
        for name, value in (self.structured_outputs or {}).items():
            where = f"structured_outputs.{name[:60]}"
            if name not in STRUCTURED:
                raise ValueError(f"{where} is unknown{nearest(name, STRUCTURED)}")
            if value is not None and value is not False:
                found.append((where, _one(where, STRUCTURED[name], value)))
        return found


def format_grammar(
    field: str, kind: str, schema: dict[str, Any] | None, place: str = "schema"
) -> list[tuple[str, dict[str, Any]]]:
    """The grammar of a `field` that holds the form of an answer, such as a response_format; none for "text".

    Args:
        kind: text, json_object or json_schema.
        schema: of the last kind.
        place: of the schema in the field.
    """
    if kind == "text":
        return []
    if kind == "json_object":
        return [(field, dict(ANY_OBJECT))]
    if schema is None:
        raise ValueError(f"field '{field}.{place}' is missing")
    return [(field, {"json_schema": schema})]


def _one(field: str, kind: str, value: Any) -> dict[str, Any]:
    """A grammar as the engine takes it."""
    if kind == "json_object":
        if value is not True:
            raise ValueError(f"{field}={shown(value)} must be true or false")
        return dict(ANY_OBJECT)
    if kind == "json_schema":
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise ValueError(f"{field}={shown(value)} is no JSON") from None
        if not isinstance(value, Mapping):
            raise ValueError(f"{field}={shown(value)} must be a JSON schema, an object")
    elif kind == "choice":
        if not (isinstance(value, list) and value and all(isinstance(v, str) for v in value)):
            raise ValueError(f"{field}={shown(value)} must be a list of texts")
    elif not isinstance(value, str) or not value:
        raise ValueError(f"{field}={shown(value)} must be a text, not empty")
    return {kind: value}


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


class Fields(BaseModel):
    """The body of a request. A name that it does not have is refused, with the nearest one that it has."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        for name in data if isinstance(data, Mapping) else ():
            if name not in cls.model_fields:
                if name in OLDER:
                    raise ValueError(f"field {shown(name)} is not taken: give {OLDER[name]}")
                hint = nearest(name, cls.model_fields).partition("; known")[0]  # not all of them
                raise ValueError(f"field {shown(name)} is unknown{hint}")
        return data


class FastslowFields(ModeFields, GrammarFields, ClientOptions, Fields):
    """Fields beyond the protocol's own. Those of sampling have vLLM's names."""

    speculation: Speculate = None
    timeout: Annotated[Number, Field(gt=0)] | None = Field(
        default=None, description="seconds after which the answer ends with what there is"
    )
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        default=None, description="prefixes and answers are shared with the same salt only"
    )
    top_k: Annotated[StrictInt, Field(ge=-1, le=MOST)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=100)] | None = None
    min_tokens: Tokens | None = None
    stop_token_ids: Annotated[list[Tokens], Field(max_length=1000, fail_fast=True)] | None = None
    ignore_eos: StrictBool | None = None
    prompt_logprobs: Annotated[StrictInt, Field(ge=0)] | None = Field(
        default=None,
        description="log-probabilities of this many likeliest tokens at each token of the prompt",
    )

    def as_request(
        self,
        id: str,
        prompt: str | Sequence[int] | Sequence[Message],
        sampling: Mapping[str, Any],
        who: Caller,
        card: ModelCard,
        settings: ServerSettings,
        *,
        default_mode: str | None = None,
        streamed: bool = True,
        **options: Any,
    ) -> GenerateRequest:
        """What the engine is asked.

        Args:
            id: names the request.
            prompt: as `GenerateRequest` has it.
            sampling: what the protocol's own fields say; None values are as not given.
            default_mode: the mode where the client names none; None = the settings'.
            options: further `GenerateOptions`.
        """
        default_mode = default_mode or settings.default_mode
        mode, variables = self.mode_and_variables(card, settings, default_mode)
        each = {**self._sampling(settings), **{k: v for k, v in sampling.items() if v is not None}}
        given = {name: value for name, value in each.items() if value is not None}
        _check_limits(given, settings)
        is_chat = bool(prompt) and isinstance(prompt[0], Mapping)
        if variables and not is_chat:
            raise ValueError("chat_template_kwargs are for chats, and this prompt is none")
        kept = self.keeping_thoughts(card, settings) if is_chat else {}
        variables = kept.pop("chat_template_kwargs", {}) | variables
        fields: dict[str, Any] = {
            "sampling": given,
            "sampling_defaults": settings.sampling,
            "mode": mode,
            "speculation": speculation_of(self.speculation),
            "timeout": self._seconds(settings),
            "memory_key": who.memory(self.cache_salt),
            "chat_template_kwargs": variables or None,
            **{name: getattr(self, name) for name in ClientOptions.model_fields},
        }
        made = GenerateOptions(**{**fields, **kept, **options})
        return who.admit(GenerateRequest(id, prompt, made, streamed), card)

    def _sampling(self, settings: ServerSettings) -> dict[str, Any]:
        names = ("top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos")
        given = {
            name: getattr(self, name) for name in (*names, "stop_token_ids", "prompt_logprobs")
        }
        return {**given, "grammar": self.grammar(settings.grammar_bytes)}

    def _seconds(self, settings: ServerSettings) -> float:
        most = settings.longest_timeout
        if self.timeout is not None and self.timeout > most:
            raise ValueError(f"timeout={shown(self.timeout)} must be at most {most:g} seconds")
        return min(settings.timeout, most) if self.timeout is None else self.timeout


def _check_limits(given: Mapping[str, Any], settings: ServerSettings) -> None:
    """Refuse what the settings allow less of than the engine does."""
    counts: dict[str, int] = {"logprobs": settings.logprobs, "prompt_logprobs": settings.logprobs}
    for name, most in counts.items():
        if (given.get(name) or 0) > most:
            raise ValueError(f"{name}={shown(given[name])} must be at most {most}")
    stop = given.get("stop")
    lengths = {"stop": len(stop) if isinstance(stop, Sequence) and not isinstance(stop, str) else 0}
    lengths["logit_bias"] = len(given.get("logit_bias") or ())
    for name, most in (("stop", settings.stops), ("logit_bias", settings.biases)):
        if lengths[name] > most:
            raise ValueError(f"{name} has {lengths[name]} entries; at most {most} are taken")


def _bounded(biases: object) -> object:
    if isinstance(biases, dict) and len(biases) > MOST_BIASES:
        raise ValueError(
            f"logit_bias has {len(biases)} entries; at most {MOST_BIASES} are looked at"
        )
    return biases


class SamplingFields(FastslowFields):
    """The model, and what OpenAI calls these fields; other protocols take all of them, too."""

    model: Annotated[str, Field(max_length=256)] | None = Field(
        default=None, description="a name of /v1/models; NAME:MODE stands for a model in a mode"
    )
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    seed: Annotated[StrictInt, Field(ge=-SEEDS, lt=SEEDS)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, Field(pattern=r"^[0-9]{1,9}$")],
                Annotated[Number, Field(ge=-100, le=100)],
            ],
            BeforeValidator(_bounded),
        ]
        | None
    ) = None

    def sampling(self) -> dict[str, Any]:
        """Fields of `SamplingParams`, by their names there."""
        names = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias")
        seed = None if self.seed is None else self.seed % SEEDS
        return {**{name: getattr(self, name) for name in names}, "seed": seed}
