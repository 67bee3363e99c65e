"""`generate` and `chat`: single calls, whose models stay loaded until the process ends."""

from __future__ import annotations

import atexit
import inspect
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, Unpack, overload

from fastslow.engine_args import EngineArgs
from fastslow.llm import LLM
from fastslow.output import Output
from fastslow.request.keywords import GenerateCall, ListOptions
from fastslow.request.options import Conversation, ListOf, Prompt, Sampling, Samplings

DEFAULT = "smollm2-moge"
Call = TypeVar("Call", bound=Callable[..., Any])
Key = tuple[int, str, tuple[tuple[str, str], ...]]

_loaded: dict[Key, LLM] = {}
_loading = threading.Lock()


def _after_fork() -> None:
    """In the child: another thread may have held the lock, and runs in the parent only."""
    global _loading
    _loading = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class OneOffOptions(ListOptions, EngineArgs, total=False):
    """The keywords of `generate` and `chat`: those of `LLM.generate`, and of `LLM`."""

    model: str | Path


def _shows(method: Any) -> Callable[[Call], Call]:
    """Show the keywords of a method of `LLM`, and of `LLM`, in `help` and in editors that run code."""

    def decorate(call: Call) -> Call:
        _, *own = inspect.signature(method).parameters.values()
        known = {one.name for one in own}
        kind = inspect.Parameter.KEYWORD_ONLY
        made = (one.replace(kind=kind) for one in inspect.signature(LLM).parameters.values())
        shown = [*own, *(one for one in made if one.name not in known)]
        call.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        return call

    return decorate


@overload
def generate(
    prompts: Prompt, sampling: Sampling = None, **options: Unpack[OneOffOptions]
) -> Output: ...
@overload
def generate(
    prompts: ListOf[Prompt], sampling: Samplings = None, **options: Unpack[OneOffOptions]
) -> list[Output]: ...
@_shows(LLM.generate)
def generate(prompts: Any, sampling: Any = None, **options: Any) -> Any:
    """Answer one prompt or many with a model that is loaded on first use.

    A model with the same options is loaded once and kept until the process ends; a forked process loads
    its own. Use an `LLM` instead to choose when its memory is freed.

    Args:
        prompts, sampling: as `LLM.generate` takes them; the result and the errors are its own, too.
        options: `model`, a checkpoint folder or a built-in name; keyword arguments of `LLM.generate`, such as
            mode and speculation, and of `LLM`, such as dtype. With progress bars are drawn while the model
            loads, too.
    """
    llm, call = _llm(options)
    return llm.generate(prompts, sampling, **call)


@overload
def chat(
    messages: Conversation, sampling: Sampling = None, **options: Unpack[OneOffOptions]
) -> Output: ...
@overload
def chat(
    messages: ListOf[Conversation], sampling: Samplings = None, **options: Unpack[OneOffOptions]
) -> list[Output]: ...
@_shows(LLM.chat)
def chat(messages: Any, sampling: Any = None, **options: Any) -> Any:
    """Answer a conversation, or one user message given as text, or a list of such; see `generate`."""
    llm, call = _llm(options)
    return llm.chat(messages, sampling, **call)


def _llm(options: dict[str, Any]) -> tuple[LLM, dict[str, Any]]:
    """The model that is asked, and which of the options are for the call."""
    model = str(options.pop("model", DEFAULT))
    call = {name: options.pop(name) for name in GenerateCall.model_fields if name in options}
    # a forked process has the parent's models, which do not answer there
    key = (
        os.getpid(),
        model,
        tuple(sorted((name, repr(value)) for name, value in options.items())),
    )
    with _loading:
        if key not in _loaded:
            _loaded[key] = LLM(model, progress=call.get("progress", True), **options)
        return _loaded[key], call


@atexit.register
def _close_all() -> None:
    with _loading:
        while _loaded:
            _loaded.popitem()[1].close()
