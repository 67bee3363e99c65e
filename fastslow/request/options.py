"""`GenerateOptions`: how a prompt is answered. Python, HTTP and the command line fill the same fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import TIMEOUT_MAX
from typing import Annotated, Any, Protocol, Self, SupportsIndex, TypeVar

from pydantic import BaseModel, Field, PlainValidator, StrictBool, StrictInt

from fastslow.engine.checked import Params, kept_as, shown
from fastslow.engine.host.files import read_object
from fastslow.engine.params import MOST_PRIORITY, Mode, Number, SamplingParams, Speculation
from fastslow.engine.text.messages import Message
from fastslow.policies.mode_router import ModeRouter
from fastslow.request.resume import ResumeState

Prompt = str | Sequence[SupportsIndex] | Sequence[Message]
"""Text (without a template), token ids, or chat messages (put through the template)."""
Conversation = str | Sequence[Message]
"""Chat messages, or the text of one user message."""
ModeLike = str | Mode | Mapping[str, Any] | ModeRouter
"""A preset's name, a mode, the fields of one, or a function that names a preset for a prompt."""
SpeculationLike = str | Speculation | Mapping[str, Any]
"""A drafter's name, "auto", "off", the path of a settings file (*.json), the settings, or their fields."""
Tools = Sequence[Mapping[str, Any]]
"""Functions that an answer may call, as OpenAI has them."""
Presets = str | Path | Mapping[str, Mode | Mapping[str, Any]]
"""Presets by name, or the path of a JSON file that holds them."""

GENERATION = "generation_config.json"
OF_MODELS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # that it may hold
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


Sampling = SamplingParams | Mapping[str, Any] | None
Samplings = Sampling | Sequence[Sampling]


Key = Annotated[str, Field(min_length=1, max_length=LONGEST_KEY)]
Priority = Annotated[StrictInt, Field(ge=-MOST_PRIORITY, le=MOST_PRIORITY)]
Seconds = Annotated[Number, Field(gt=0, le=LONGEST)]


def _checked(fits: Callable[[Any], bool], words: str) -> PlainValidator:
    """For a field whose values are kept as they are, where they fit."""

    def check(value: object) -> object:
        if fits(value):
            return value
        raise ValueError(f"it should be {words}")

    return PlainValidator(check, json_schema_input_type=Any)


def _named(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


_SAMPLING = _checked(
    lambda value: isinstance(value, SamplingParams | None) or _named(value),
    "SamplingParams, a dict of their fields by name, or None",
)
_FIELDS = _checked(_named, "a dict of fields of SamplingParams by name")
_VARIABLES = _checked(
    lambda value: value is None or _named(value),
    "a dict of the chat template's variables by name",
)
_TOOLS = _checked(lambda value: value is None or is_chat(value), "a list of dicts, or None")


class ClientOptions(BaseModel):
    """Options that the body of an HTTP request has, too, under the same name and with the same checks."""

    priority: Priority = Field(
        default=0,
        description="-1000 to 1000; requests with a smaller number start before others that wait, and lose "
        "their pages after them. No token depends on it",
    )
    turn: Key | None = Field(
        default=None,
        description="names the user's turn, whose calls share the mode's `turn_budget`. None: its thoughts are "
        "counted in the messages since the user's latest one",
    )
    trace: StrictBool = Field(
        default=False,
        description="note what each step does, for `trace` of the handle or the stream",
    )


class GenerateOptions(ClientOptions, Params):
    """Options of one prompt's answer. A new option is a field here, or in `ClientOptions`, and its use.

    Values are checked where the model is not needed for it; the rest is checked when the request is
    built. Nothing is copied or converted, so that the same options go to another process as they are.
    """

    sampling: Annotated[Sampling, _SAMPLING] = Field(
        default=None,
        description="`SamplingParams`, or their fields; fields that are not given are the mode's",
    )
    sampling_defaults: Annotated[Mapping[str, Any], _FIELDS] = Field(
        default={}, description="fields that hold where neither `sampling` nor the mode gives them"
    )
    mode: Annotated[ModeLike | None, kept_as(Any)] = Field(
        default=None,
        description='"fast", "deep", "auto" or another preset; a `Mode`, or a dict of its fields, which with '
        '`base` changes a preset: {"base": "deep", "thinking_budget": 64}; a callable from a '
        '`PromptFacts` to a preset\'s name. None = "deep"',
    )
    speculation: Annotated[SpeculationLike | None, kept_as(Any)] = Field(
        default=None,
        description='"auto", "off", a drafter\'s name, a `Speculation` or a dict of its fields, or the path of '
        'a settings file (*.json). None = "auto"',
    )
    timeout: Seconds | None = Field(
        default=None,
        description="seconds from the call after which a request ends, wherever it is, with what it has and "
        'finish_reason "timeout"',
    )
    memory_key: Key | None = Field(
        default=None,
        description="names the caller, where an LLM serves several: text of at most 256 characters. "
        "Remembered answers and cached prefixes are shared among calls with the same key only. None: "
        'among all calls without a key, but for answers of `remember="by_key"`',
    )
    share: Key | None = Field(
        default=None,
        description="who asks, where several are to have fair shares: text of at most 256 characters. While calls of "
        "several shares run or wait, the answers of a step are dealt out among the shares. No token depends on it",
    )
    allow_special: StrictBool = Field(
        default=False,
        description="special tokens that a prompt spells, such as <|im_end|>, are marks; otherwise they are "
        "text, since a user may have written them",
    )
    chat_template_kwargs: Annotated[Mapping[str, object] | None, _VARIABLES] = Field(
        default=None,
        description='variables of the chat template, such as {"reasoning_effort": "medium"}; they win over '
        "what the mode asks for",
    )
    tools: Annotated[Tools | None, _TOOLS] = Field(
        default=None,
        description="functions that the answer may call, as OpenAI has them: a list of "
        '{"type": "function", "function": {"name": ..., "description": ..., "parameters": a JSON schema}}',
    )
    tool_choice: Annotated[str | Mapping[str, Any] | None, kept_as(Any)] = Field(
        default=None,
        description='"auto", "none", "required" (at least one call), or {"type": "function", "function": {"name": ...}} '
        "(one call of this function)",
    )
    parallel_tool_calls: StrictBool = Field(
        default=True, description="an answer may have several calls of `tools`"
    )
    keep_thoughts: StrictBool = Field(
        default=False,
        description="thoughts of earlier turns (`reasoning` or `reasoning_content` of the assistant's messages) "
        "stay in the prompt, so that the next turn finds all of its past in the prefix cache. Else the chat "
        "template decides; most leave them out",
    )
    prediction: Annotated[str | Sequence[SupportsIndex] | None, kept_as(Any)] = Field(
        default=None,
        description="text or token ids that the answer probably repeats, such as a file that is to be edited. "
        "It is drafted from, for this request alone",
    )
    answered: ResumeState | None = Field(
        default=None, description="the tokens of the answer so far, see `ResumeState`"
    )

    def sampling_in(self, mode: Mode, model: Mapping[str, Any] | None = None) -> SamplingParams:
        """The call's fields, then the mode's where the call gives none, then the defaults, then the model's own.

        `SamplingParams` of a call are its own defaults: with them the model's do not count.
        """
        own, given = mode.sampling, self.sampling
        if isinstance(given, SamplingParams):
            model = None
            if own is None and not self.sampling_defaults:
                return given
        layers = (model, self.sampling_defaults, own, given)
        # a class of the caller's may have defaults of its own
        kind = type(given) if isinstance(given, SamplingParams) else SamplingParams
        return kind(**{k: v for layer in layers for k, v in given_sampling(layer).items()})

    def with_tools(self, sampling: Mapping[str, Any], variables: Mapping[str, Any]) -> Self:
        """The same with what tools change: fields of `SamplingParams`, and variables of the chat template."""
        if not variables:
            return self
        own, given = self.sampling, given_sampling(self.sampling)
        fields = {**given, **sampling}
        if stops := sampling.get("stop_token_ids"):
            fields["stop_token_ids"] = [*(given.get("stop_token_ids") or ()), *stops]
        made = type(own)(**fields) if isinstance(own, SamplingParams) else fields
        variables = {**(self.chat_template_kwargs or {}), **variables}
        return self.model_copy(update={"sampling": made, "chat_template_kwargs": variables})

    def given(self) -> dict[str, Any]:
        """The fields that were given, as they were."""
        return {name: getattr(self, name) for name in self.model_fields_set}


def given_sampling(sampling: Sampling) -> Mapping[str, Any]:
    """The fields of `SamplingParams` that were given."""
    if isinstance(sampling, SamplingParams):
        return {name: getattr(sampling, name) for name in sampling.model_fields_set}
    return sampling or {}


def model_sampling(folder: Path) -> dict[str, Any]:
    """Read the sampling that generation_config.json recommends for a model, as fields of `SamplingParams`. ValueError:
    a value does not fit; one sentence."""
    path = folder / GENERATION
    said = read_object(path)
    found = {name: said[name] for name in OF_MODELS if said.get(name) is not None}
    if said.get("do_sample") is False:
        found["temperature"] = 0
    elif said.get("do_sample") is True:
        found.setdefault("temperature", 1)
    try:
        SamplingParams(**found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return found


def spread(name: str, value: Any, count: int) -> list[Any]:
    """Return a value for every prompt: those of a sequence, anything else repeated. ValueError: its length differs."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} entries for {count} prompts")
    return list(value)


def as_wait(timeout: Any) -> float | None:
    """Return the seconds that a call waits, as locks take them; None: no limit. ValueError: it is neither."""
    if timeout is None:
        return None
    number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if not (number and timeout <= LONGEST):  # so nan are not
        raise ValueError(f"timeout={shown(timeout)} must be seconds, at most {LONGEST:g}, or None")
    return float(max(0, min(timeout, TIMEOUT_MAX)))


def as_messages(messages: Any) -> list[Message]:
    """A text is one user message."""
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if is_chat(messages):
        return list(messages)
    raise ValueError(
        f"messages={shown(messages)} must be text or a list of dicts with role and content"
    )


def as_prompts(conversations: Any) -> Any:
    """Convert one conversation, or a list of them, to what `LLM.generate` takes."""
    several = isinstance(conversations, Sequence) and not isinstance(conversations, str)
    several = several and not is_chat(conversations)
    if several and all(isinstance(one, Sequence) for one in conversations):
        return [as_messages(one) for one in conversations]
    return as_messages(conversations)


def is_chat(value: Any) -> bool:
    """Tell whether it is a list of dicts."""
    return isinstance(value, Sequence) and all(isinstance(part, Mapping) for part in value)
