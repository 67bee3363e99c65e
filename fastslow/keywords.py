"""Calls whose keywords are the fields of a model, which lists them once.

Type checkers and editors see every field as a keyword parameter, and so does `inspect.signature`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import (
    Any,
    Concatenate,
    ParamSpec,
    Protocol,
    SupportsIndex,
    TypedDict,
    TypeVar,
    Unpack,
    get_type_hints,
    overload,
)

from pydantic import Field, StrictBool, ValidationError

from fastslow.engine.checked import nearest, sentence, shown
from fastslow.engine.params import SamplingParams
from fastslow.output import Output
from fastslow.request.options import (
    GenerateOptions,
    ListOf,
    ModeLike,
    Sampling,
    Samplings,
    SpeculationLike,
    Tools,
)

P = ParamSpec("P")
A = TypeVar("A")
R = TypeVar("R")
Owner = TypeVar("Owner")
A_contra = TypeVar("A_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
FIRST = inspect.Parameter.POSITIONAL_OR_KEYWORD


class GenerateCall(GenerateOptions):
    """The keywords of `generate` and `chat`, which take lists of prompts, too."""

    progress: StrictBool = Field(
        default=True,
        description="for a list of prompts, draw a bar on a terminal: how many are answered",
    )


class ListOptions(TypedDict, total=False):
    """Keywords for a list of prompts, for type checkers: one value for all, or a list with one for each."""

    mode: ModeLike | None | Sequence[ModeLike | None]
    speculation: SpeculationLike | None | Sequence[SpeculationLike | None]
    timeout: float | None | Sequence[float | None]
    memory_key: str | None | Sequence[str | None]
    share: str | None | Sequence[str | None]
    turn: str | None | Sequence[str | None]
    allow_special: bool | Sequence[bool]
    chat_template_kwargs: Mapping[str, object] | None | Sequence[Mapping[str, object] | None]
    tools: Tools | None | Sequence[Tools | None]
    tool_choice: str | Mapping[str, Any] | None | Sequence[str | Mapping[str, Any] | None]
    parallel_tool_calls: bool | Sequence[bool]
    keep_thoughts: bool | Sequence[bool]
    priority: int | Sequence[int]
    prediction: str | None | Sequence[str | Sequence[SupportsIndex] | None]
    progress: bool


class TakesOne(Protocol[A_contra, P, R_co]):
    """Called with one prompt."""

    @overload
    def __call__(self, prompt: A_contra, /, *_: P.args, **options: P.kwargs) -> R_co: ...
    @overload
    def __call__(
        self, prompt: A_contra, sampling: Sampling, /, *_: P.args, **options: P.kwargs
    ) -> R_co: ...


class TakesLists(Protocol[A_contra, P]):
    """Called with one prompt or a list."""

    @overload
    def __call__(self, prompts: A_contra, /, *_: P.args, **options: P.kwargs) -> Output: ...
    @overload
    def __call__(
        self, prompts: A_contra, sampling: Sampling, /, *_: P.args, **options: P.kwargs
    ) -> Output: ...
    @overload
    def __call__(
        self,
        prompts: ListOf[A_contra],
        /,
        sampling: Samplings = None,
        **options: Unpack[ListOptions],
    ) -> list[Output]: ...


class Method(Protocol[R_co]):
    """Type of a decorated method: read from an object it is an `R_co`."""

    @overload
    def __get__(self, owner: None, kind: type, /) -> Callable[..., Any]: ...
    @overload
    def __get__(self, owner: object, kind: type | None = None, /) -> R_co: ...


def takes_options(
    _: Callable[P, GenerateOptions],
) -> Callable[[Callable[[Any, A, GenerateOptions], R]], Method[TakesOne[A, P, R]]]:
    """For a method that answers one prompt: it gets its keywords as one `GenerateOptions`."""

    def decorate(method: Callable[[Any, A, GenerateOptions], R]) -> Any:
        return _with_keywords(method, GenerateOptions, lambda fields: GenerateOptions(**fields))

    return decorate


def takes_lists(
    _: Callable[P, GenerateCall],
) -> Callable[[Callable[[Any, A | ListOf[A], dict[str, Any]], Any]], Method[TakesLists[A, P]]]:
    """For a method that answers one prompt or a list: it gets its keywords as they were given."""

    def decorate(method: Any) -> Any:
        return _with_keywords(method, GenerateCall, lambda fields: fields)

    return decorate


def takes_fields(
    kind: Callable[P, A],
) -> Callable[[Callable[[Owner, A], None]], Callable[Concatenate[Owner, P], None]]:
    """For an `__init__` whose arguments are the fields of a dataclass: it gets them as one object."""
    kinds = get_type_hints(kind)  # without their checks
    shown_as = {
        n: p.replace(annotation=kinds[n]) for n, p in inspect.signature(kind).parameters.items()
    }

    def decorate(build: Callable[[Owner, A], None]) -> Callable[Concatenate[Owner, P], None]:
        @wraps(build)
        def called(owner: Owner, /, *given: P.args, **fields: P.kwargs) -> None:
            refuse_unknown(fields, shown_as)
            try:
                args = kind(*given, **fields)
            except ValidationError as error:
                raise ValueError(sentence(error)) from None
            build(owner, args)

        owner, *_ = inspect.signature(build).parameters.values()
        called.__doc__ = kind.__doc__
        called.__signature__ = inspect.Signature([owner, *shown_as.values()])  # type: ignore[attr-defined]
        return called

    return decorate


def _with_keywords(
    method: Callable[[Any, Any, Any], Any],
    model: type[GenerateOptions],
    read: Callable[[dict[str, Any]], Any],
) -> Callable[..., Any]:
    known = model.model_fields
    owner, first, _ = inspect.signature(method).parameters.values()
    shown_as = inspect.signature(model).parameters  # without their checks
    ordered = sorted(known.items(), key=lambda item: item[0] != "sampling")  # which comes first
    keywords = [
        inspect.Parameter(
            name,
            FIRST if name == "sampling" else inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=shown_as[name].annotation,
        )
        for name, field in ordered
    ]
    signature = inspect.Signature([owner, first, *keywords])

    @wraps(method)
    def called(owner: object, *given: Any, **fields: Any) -> Any:
        refuse_unknown(fields, (first.name, *known))
        (_, (_, prompt), *others) = signature.bind(owner, *given, **fields).arguments.items()
        return method(owner, prompt, read(dict(others)))

    if inspect.iscoroutinefunction(method):
        whole = called

        @wraps(method)
        async def called(owner: object, *given: Any, **fields: Any) -> Any:
            return await whole(owner, *given, **fields)

    options = (f"    {name}: {field.description}." for name, field in known.items())
    called.__doc__ = "\n".join([inspect.getdoc(method) or "", "", "Options:", *options])
    called.__signature__ = signature  # type: ignore[attr-defined]
    return called


def refuse_unknown(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise a ValueError for the first keyword of a call that means nothing."""
    known = list(known)
    for name in given:
        if name in known:
            continue
        if name in SamplingParams.model_fields:
            raise ValueError(f"option {name!r} belongs into sampling=SamplingParams({name}=...)")
        raise ValueError(f"option {shown(name)} is unknown{nearest(name, known)}")
