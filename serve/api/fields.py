"""Fields of a request that every protocol shares: what this server offers beyond the protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, model_validator

from fastslow.engine.params import MOST, Number, nearest, shown
from fastslow.engine.text.messages import Message
from fastslow.serve.api.ask import Ask
from fastslow.serve.api.caller import Caller
from fastslow.serve.api.engine import ModelCard
from fastslow.serve.api.grammar_fields import GrammarFields
from fastslow.serve.api.mode_fields import ModeFields
from fastslow.serve.api.settings import ServerSettings
from fastslow.serve.api.speculation_field import Speculate, speculation_of

Tokens = Annotated[StrictInt, Field(ge=0, le=MOST)]
OLDER = {
    "functions": "tools, each a {'type': 'function', 'function': {...}}",
    "function_call": "tool_choice",
}
"""Fields that OpenAI has given up, and what stands for them."""


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


class FastslowFields(ModeFields, GrammarFields, Fields):
    """Fields beyond the protocol's own. Those of sampling have vLLM's names."""

    speculation: Speculate = None
    priority: Annotated[StrictInt, Field(ge=-MOST, le=MOST)] = Field(
        default=0, description="requests with a smaller number go first"
    )
    timeout: Annotated[Number, Field(gt=0)] | None = Field(
        default=None, description="seconds after which the answer ends with what there is"
    )
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        default=None, description="prefixes and answers are shared with the same salt only"
    )
    trace: StrictBool = Field(
        default=False, description="tell in the answer what every step of it did"
    )
    top_k: Annotated[StrictInt, Field(ge=-1, le=MOST)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=100)] | None = None
    min_tokens: Tokens | None = None
    stop_token_ids: Annotated[list[Tokens], Field(max_length=1000, fail_fast=True)] | None = None
    ignore_eos: StrictBool | None = None
    prompt_logprobs: Annotated[StrictInt, Field(ge=0)] | None = Field(
        default=None,
        description="log-probabilities of so many likeliest tokens at each of the prompt's",
    )

    def as_ask(
        self,
        id: str,
        prompt: str | Sequence[int] | Sequence[Message],
        sampling: Mapping[str, Any],
        who: Caller,
        card: ModelCard,
        settings: ServerSettings,
        **more: Any,
    ) -> Ask:
        """What the engine is asked.

        Args:
            id: names the request.
            prompt: as `Ask` has it.
            sampling: what the protocol's own fields say; None values are as not given.
            more: further fields of the `Ask`; `default_mode` for another one than the settings'.

        Raises:
            ValueError: fields contradict each other, or are above a limit of the settings.
        """
        default_mode = more.pop("default_mode", None) or settings.default_mode
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
            "mode": mode,
            "speculation": speculation_of(self.speculation),
            "timeout": self._seconds(settings),
            "memory_key": who.memory(self.cache_salt),
            "chat_template_kwargs": variables or None,
            "priority": self.priority,
            "defaults": settings.sampling,
            "trace": self.trace,
            **kept,
        }
        return who.admit(Ask(id=id, prompt=prompt, sampling=given, **{**fields, **more}), card)

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


Ignored = Any
"""A field that is accepted and has no effect here."""
NO_EFFECT: Literal["accepted; has no effect here"] = "accepted; has no effect here"
