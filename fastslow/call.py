"""The arguments of a call: their types, and functions that turn one value or a list into a list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, SupportsIndex, TypedDict, TypeVar

from fastslow.engine.params import Mode, SamplingParams, Speculation
from fastslow.engine.text.templates import Message
from fastslow.engine.types import Chooser

Prompt = str | Sequence[SupportsIndex] | Sequence[Message]
"""Text (without a template), token ids, or chat messages (put through the template)."""
Conversation = str | Sequence[Message]
"""Chat messages, or the text of one user message."""
ModeLike = str | Mode | Mapping[str, Any] | Chooser
"""A preset's name, a mode, the fields of one, or a function that names a preset for a prompt."""
SpeculationLike = str | Speculation
"""A drafter's name, "auto", "off", the path of a settings file (*.json), or the settings."""
Presets = str | Path | Mapping[str, Mode | Mapping[str, Any]]
"""Presets by name, or the path of a JSON file that holds them."""

T_co = TypeVar("T_co", covariant=True)


class ListOf(Protocol[T_co]):
    """A list or a tuple, for type checkers. A str is a `Sequence[str]`, but one prompt. Its `__contains__`
    takes only str, so this protocol excludes it."""

    def __contains__(self, value: object, /) -> bool: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[T_co]: ...
    def __getitem__(self, place: SupportsIndex, /) -> T_co: ...


class CallOptions(TypedDict, total=False):
    """How one prompt is answered; `LLM.generate` says what the fields mean."""

    mode: ModeLike
    speculation: SpeculationLike
    allow_special: bool


class PromptOptions(CallOptions, total=False):
    """The same for `generate` and `chat`, which take lists, too."""

    progress: bool


class BatchOptions(TypedDict, total=False):
    """How many prompts are answered: one value for all of them, or a list with one for each."""

    mode: ModeLike | Sequence[ModeLike]
    speculation: SpeculationLike | Sequence[SpeculationLike]
    allow_special: bool | Sequence[bool]
    progress: bool


Sampling = SamplingParams | None
Samplings = Sampling | Sequence[Sampling]


def spread(name: str, value: Any, count: int) -> list[Any]:
    """One value for every prompt: a list as it is, anything else repeated."""
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} entries for {count} prompts")
    return list(value)


def as_messages(messages: Any) -> list[Message]:
    """A text is one user message.

    Raises:
        ValueError: neither a text nor a list of messages.
    """
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if _is_chat(messages):
        return list(messages)
    raise ValueError(f"messages={messages!r} must be text or a list of dicts with role and content")


def as_prompts(conversations: Any) -> Any:
    """One conversation, or a list of them, as `LLM.generate` takes it.

    Raises:
        ValueError: see `as_messages`.
    """
    several = isinstance(conversations, list | tuple) and not _is_chat(conversations)
    if several and all(isinstance(one, str | list | tuple) for one in conversations):
        return [as_messages(one) for one in conversations]
    return as_messages(conversations)


def sampling_in(mode: Mode, params: SamplingParams | None) -> SamplingParams:
    """The call's fields, then the mode's where the call gives none, then the defaults.

    Raises:
        ValueError: `params` is something else, or the fields contradict each other.
    """
    if params is not None and not isinstance(params, SamplingParams):
        raise ValueError(f"sampling must be SamplingParams, not {type(params).__name__}")
    if params is None or mode.sampling is None:
        return params or mode.sampling or SamplingParams()
    own, asked = ({f: getattr(p, f) for f in p.model_fields_set} for p in (mode.sampling, params))
    return SamplingParams(**{**own, **asked})


def _is_chat(value: Any) -> bool:
    return isinstance(value, Sequence) and all(isinstance(part, Mapping) for part in value)
