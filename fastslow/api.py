"""`generate` and `chat`: single calls, whose models stay loaded until the process ends."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from fastslow.llm import LLM
from fastslow.output import Output
from fastslow.request.keywords import GenerateCall
from fastslow.request.options import (
    Conversation,
    ListOf,
    ModeLike,
    Prompt,
    Sampling,
    Samplings,
    SpeculationLike,
)

DEFAULT = "smollm2-moge"
Key = tuple[int, str, tuple[tuple[str, str], ...]]

_loaded: dict[Key, LLM] = {}
_loading = threading.Lock()


def _after_fork() -> None:
    """In the child: another thread may have held the lock, and runs in the parent only."""
    global _loading
    _loading = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@overload
def generate(
    prompts: Prompt,
    sampling: Sampling = None,
    *,
    model: str | Path = ...,
    mode: ModeLike | None = ...,
    speculation: SpeculationLike | None = ...,
    timeout: float | None = ...,
    progress: bool = ...,
    **llm_options: Any,
) -> Output: ...
@overload
def generate(
    prompts: ListOf[Prompt],
    sampling: Samplings = None,
    *,
    model: str | Path = ...,
    mode: ModeLike | None | Sequence[ModeLike | None] = ...,
    speculation: SpeculationLike | None | Sequence[SpeculationLike | None] = ...,
    timeout: float | None | Sequence[float | None] = ...,
    progress: bool = ...,
    **llm_options: Any,
) -> list[Output]: ...
def generate(
    prompts: Any, sampling: Any = None, *, model: str | Path = DEFAULT, **options: Any
) -> Any:
    """Answer one prompt or many with a model that is loaded on first use.

    A model with the same options is loaded once and kept until the process ends; a forked process loads
    its own. Use an `LLM` instead to choose when its memory is freed.

    Args:
        prompts, sampling: as `LLM.generate` takes them.
        model: a checkpoint folder or a built-in name.
        options: keyword arguments of `LLM.generate`, such as mode, and of `LLM`, such as dtype. With
            progress bars are drawn while the model loads, too.

    Returns:
        One `Output` for one prompt; for a list, a list in the same order.

    Raises:
        ValueError: one sentence about the first thing that does not fit.
        GenerationError: the engine failed on a request; it holds all outputs.
    """
    llm, call = _llm(str(model), options)
    return llm.generate(prompts, sampling, **call)


@overload
def chat(
    messages: Conversation, sampling: Sampling = None, *, model: str | Path = ..., **options: Any
) -> Output: ...
@overload
def chat(
    messages: ListOf[Conversation],
    sampling: Samplings = None,
    *,
    model: str | Path = ...,
    **options: Any,
) -> list[Output]: ...
def chat(
    messages: Any, sampling: Any = None, *, model: str | Path = DEFAULT, **options: Any
) -> Any:
    """Answer a conversation, or one user message given as text, or a list of such; see `generate`."""
    llm, call = _llm(str(model), options)
    return llm.chat(messages, sampling, **call)


def _llm(model: str, options: dict[str, Any]) -> tuple[LLM, dict[str, Any]]:
    """The model that is asked, and which of the options are for the call."""
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
