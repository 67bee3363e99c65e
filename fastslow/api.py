"""`generate` and `chat`: single calls, whose models stay loaded until the process ends."""

from __future__ import annotations

import atexit
import os
import threading
from dataclasses import fields
from pathlib import Path
from typing import Any

from fastslow.engine_args import EngineArgs
from fastslow.llm import LLM

Key = tuple[int, tuple[tuple[str, str], ...]]

_loaded: dict[Key, LLM] = {}
_loading = threading.Lock()


def _after_fork() -> None:
    """In the child: another thread may have held the lock, and runs in the parent only."""
    global _loading
    _loading = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def generate(prompts: Any, sampling: Any = None, **options: Any) -> Any:
    """Answer one prompt or many with a model that is loaded on first use.

    A model with the same options is loaded once and kept until the process ends; a forked process loads
    its own. Use an `LLM` instead to choose when its memory is freed.

    Args:
        prompts, sampling: as `LLM.generate` takes them; the result and the errors are its own, too.
        options: keyword arguments of `LLM`, such as model and dtype, and of `LLM.generate`, such as mode and
            speculation; that counts for names that both have.
    """
    llm, call = _llm(options)
    return llm.generate(prompts, sampling, **call)


def chat(messages: Any, sampling: Any = None, **options: Any) -> Any:
    """Answer a conversation, or one user message given as text, or a list of such; see `generate`."""
    llm, call = _llm(options)
    return llm.chat(messages, sampling, **call)


def _llm(options: dict[str, Any]) -> tuple[LLM, dict[str, Any]]:
    """The model that is asked, and the options of the call."""
    own = {field.name for field in fields(EngineArgs)} - {"speculation", "progress"}
    made = {name: value for name, value in options.items() if name in own}
    model = made.setdefault("model", EngineArgs.model)
    made["model"] = str(model) if isinstance(model, Path) else model  # one model, however named
    call = {name: value for name, value in options.items() if name not in own}
    # a forked process has the parent's models, which do not answer there
    key = os.getpid(), tuple(sorted((name, repr(value)) for name, value in made.items()))
    with _loading:
        if key not in _loaded:
            _loaded[key] = LLM(**made, progress=call.get("progress", True))
        return _loaded[key], call


@atexit.register
def _close_all() -> None:
    with _loading:
        while _loaded:
            _loaded.popitem()[1].close()
