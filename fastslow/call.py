"""The arguments of a call: their types, and functions that turn one value or a list into a list."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import TIMEOUT_MAX
from typing import Any, NamedTuple, Protocol, SupportsIndex, TypedDict, TypeGuard, TypeVar

from fastslow.answered import ResumeState
from fastslow.engine.core.scheduler import MOST_PRIORITY
from fastslow.engine.params import Mode, SamplingParams, Speculation, nearest, shown
from fastslow.engine.text.messages import Message
from fastslow.policies.mode_router import ModeRouter

Prompt = str | Sequence[SupportsIndex] | Sequence[Message]
"""Text (without a template), token ids, or chat messages (put through the template)."""
Conversation = str | Sequence[Message]
"""Chat messages, or the text of one user message."""
ModeLike = str | Mode | Mapping[str, Any] | ModeRouter
"""A preset's name, a mode, the fields of one, or a function that names a preset for a prompt."""
SpeculationLike = str | Speculation | Mapping[str, Any]
"""A drafter's name, "auto", "off", the path of a settings file (*.json), the settings, or their fields."""
Presets = str | Path | Mapping[str, Mode | Mapping[str, Any]]
"""Presets by name, or the path of a JSON file that holds them."""

LONGEST = 1e9  # seconds, thirty years
LONGEST_KEY = 256  # characters of a memory key

T_co = TypeVar("T_co", covariant=True)


class ListOf(Protocol[T_co]):
    """A sequence, for type checkers. A str is a `Sequence[str]`, but one prompt. Its `__contains__` takes
    only str, so this protocol excludes it. An array of numpy has no `__reversed__`."""

    def __contains__(self, value: object, /) -> bool: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[T_co]: ...
    def __getitem__(self, place: int, /) -> T_co: ...
    def __reversed__(self) -> Iterator[T_co]: ...


class CallOptions(TypedDict, total=False):
    """How one prompt is answered; `LLM.generate` says what the fields mean."""

    mode: ModeLike | None
    speculation: SpeculationLike | None
    timeout: float | None
    memory_key: str | None
    allow_special: bool
    chat_template_kwargs: Mapping[str, object] | None
    keep_thoughts: bool
    priority: int
    prediction: str | Sequence[SupportsIndex] | None


class HandleOptions(CallOptions, total=False):
    """The same for `submit` and `stream`, which return while the engine answers."""

    trace: bool
    answered: ResumeState | None


class PinOptions(TypedDict, total=False):
    """What decides which requests find a pinned prefix; and how its prompt is read."""

    mode: ModeLike | None
    memory_key: str | None
    every_key: bool
    allow_special: bool
    chat_template_kwargs: Mapping[str, object] | None


class PromptOptions(CallOptions, total=False):
    """The same for `generate` and `chat`, which take lists, too."""

    progress: bool


class BatchOptions(TypedDict, total=False):
    """How many prompts are answered: one value for all of them, or a list with one for each."""

    mode: ModeLike | None | Sequence[ModeLike | None]
    speculation: SpeculationLike | None | Sequence[SpeculationLike | None]
    timeout: float | None | Sequence[float | None]
    memory_key: str | None | Sequence[str | None]
    allow_special: bool | Sequence[bool]
    chat_template_kwargs: Mapping[str, object] | None | Sequence[Mapping[str, object] | None]
    keep_thoughts: bool | Sequence[bool]
    priority: int | Sequence[int]
    prediction: str | None | Sequence[str | Sequence[SupportsIndex] | None]
    progress: bool


Sampling = SamplingParams | None
Samplings = Sampling | Sequence[Sampling]


class PromptCall(NamedTuple):
    """One prompt as it was asked, not checked yet. The last fields are those of `HandleOptions`."""

    called: float  # when, of `time.monotonic`
    prompt: Prompt
    sampling: Sampling = None
    mode: ModeLike | None = None
    speculation: SpeculationLike | None = None
    timeout: float | None = None
    memory_key: str | None = None
    allow_special: bool = False
    chat_template_kwargs: Mapping[str, object] | None = None
    keep_thoughts: bool = False
    priority: int = 0
    prediction: str | Sequence[SupportsIndex] | None = None
    trace: bool = False
    answered: ResumeState | None = None

    @property
    def deadline(self) -> float | None:
        """When it ends at the latest, of `time.monotonic`.

        Raises:
            ValueError: the timeout is no number of seconds.
        """
        seconds = self.timeout
        if seconds is None:
            return None
        if not _are_seconds(seconds) or seconds <= 0:
            raise ValueError(
                f"timeout={shown(seconds)} must be seconds, above 0 and at most {LONGEST:g}, or None"
            )
        return self.called + seconds


def as_wait(timeout: object) -> float | None:
    """How long a call waits, as locks take it.

    Raises:
        ValueError: it is no number of seconds.
    """
    if timeout is None:
        return None
    if not _are_seconds(timeout):
        raise ValueError(f"timeout={shown(timeout)} must be seconds, at most {LONGEST:g}, or None")
    return float(max(0, min(timeout, TIMEOUT_MAX)))


def refuse_unknown(given: Iterable[str], known: Collection[str]) -> None:
    """Raise a ValueError for the first keyword of a call that means nothing."""
    for name in given:
        if name in known:
            continue
        if name in SamplingParams.model_fields:
            raise ValueError(f"option {name!r} belongs into sampling=SamplingParams({name}=...)")
        raise ValueError(f"option {shown(name)} is unknown{nearest(name, known)}")


def spread(name: str, value: Any, count: int) -> list[Any]:
    """One value for every prompt: a sequence as it is, anything else repeated."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
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
    raise ValueError(
        f"messages={shown(messages)} must be text or a list of dicts with role and content"
    )


def as_prompts(conversations: Any) -> Any:
    """One conversation, or a list of them, as `LLM.generate` takes it.

    Raises:
        ValueError: see `as_messages`.
    """
    several = isinstance(conversations, Sequence) and not isinstance(conversations, str)
    several = several and not _is_chat(conversations)
    if several and all(isinstance(one, Sequence) for one in conversations):
        return [as_messages(one) for one in conversations]
    return as_messages(conversations)


def as_key(memory_key: object) -> str | None:
    """The key whose memory a call shares.

    Raises:
        ValueError: it is no text, or too long.
    """
    if memory_key is None or (isinstance(memory_key, str) and 0 < len(memory_key) <= LONGEST_KEY):
        return memory_key
    limit = f"must be text of 1 to {LONGEST_KEY} characters, or None"
    if isinstance(memory_key, str) and memory_key:
        limit += f", and has {len(memory_key)}"
    raise ValueError(f"memory_key={shown(memory_key)} {limit}")


def as_priority(priority: object) -> int:
    """How urgent a call is.

    Raises:
        ValueError: it is no whole number, or outside the range.
    """
    whole = isinstance(priority, int) and not isinstance(priority, bool)
    if whole and -MOST_PRIORITY <= priority <= MOST_PRIORITY:  # type: ignore[operator]
        return priority  # type: ignore[return-value]
    raise ValueError(
        f"priority={shown(priority)} must be a whole number from {-MOST_PRIORITY} to {MOST_PRIORITY}"
    )


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
    return type(params)(**{**own, **asked})  # whose class may have defaults of its own


def _are_seconds(value: object) -> TypeGuard[float]:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and value <= LONGEST
    )  # so nan are not


def _is_chat(value: Any) -> bool:
    return isinstance(value, Sequence) and all(isinstance(part, Mapping) for part in value)
