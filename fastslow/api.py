"""`generate`: one call, whose models stay loaded until the process ends."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from fastslow.call import ListOf, ModeLike, Prompt, Sampling, Samplings, SpeculationLike
from fastslow.llm import LLM
from fastslow.output import Output

Key = tuple[int, str, tuple[tuple[str, str], ...]]

_loaded: dict[Key, LLM] = {}
_loading = threading.Lock()


def _after_fork() -> None:
    """In the child: another thread may have held the lock, and goes on in the parent only."""
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
    prompts: Any,
    sampling: Any = None,
    *,
    model: str | Path = "smollm2-moge",
    mode: Any = None,
    speculation: Any = None,
    timeout: Any = None,
    progress: bool = True,
    **llm_options: Any,
) -> Any:
    """Answer one prompt or many with a model that is loaded on first use.

    A model with the same options is loaded once and kept until the process ends; a forked process loads
    its own. Use an `LLM` instead to choose when its memory is freed.

    Args:
        prompts, sampling, mode, speculation, timeout: as `LLM.generate` takes them.
        progress: draw bars while the model loads and while a list of prompts is answered.
        model: a checkpoint folder or a built-in name.
        llm_options: keyword arguments of `LLM`, such as dtype and device.

    Returns:
        One `Output` for one prompt; for a list, a list in the same order.

    Raises:
        ValueError: one sentence about the first thing that does not fit.
        GenerationError: the engine failed on a request; it holds all outputs.
    """
    llm = _llm(str(model), progress, llm_options)
    call = {"mode": mode, "speculation": speculation, "timeout": timeout}
    return llm.generate(prompts, sampling, **call, progress=progress)


def _llm(model: str, progress: bool, options: dict[str, Any]) -> LLM:
    # a forked process has the parent's models, which do not answer there
    key = (
        os.getpid(),
        model,
        tuple(sorted((name, repr(value)) for name, value in options.items())),
    )
    with _loading:
        if key not in _loaded:
            _loaded[key] = LLM(model, progress=progress, **options)
        return _loaded[key]


@atexit.register
def _close_all() -> None:
    with _loading:
        while _loaded:
            _loaded.popitem()[1].close()
