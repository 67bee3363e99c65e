"""The arguments of `LLM`: their types, and what they mean for a model's context and pages."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar, cast

import torch

from fastslow.engine.host.files import cache_folder
from fastslow.engine.kv.budget import page_budget, parse_bytes, too_much
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.kv.page_file import PageFile
from fastslow.engine.model.base import Model, kv_cache_for
from fastslow.engine.parallel.sharding import Parallel
from fastslow.engine.params import Speculation, shown
from fastslow.policies.auto import checkpoint_selector, read_selector
from fastslow.policies.mode_router import ModeRouter
from fastslow.request.keywords import refuse_unknown
from fastslow.request.options import Presets, SpeculationLike

Build = TypeVar("Build", bound=Callable[..., None])


class EngineArgs(TypedDict, total=False):
    """The keyword arguments of `LLM` that no call has, for what passes them on; that says what they mean."""

    dtype: str
    quantization: str
    device: str
    kv_dtype: str
    kv_memory: float | str | None
    kv_spill: int | str | None
    max_model_len: int | None
    prompt_rows: int
    max_running: int
    prefix_caching: bool
    auto: ModeRouter | str | Path | None
    remember: bool | Literal["by_key"]
    modes: Presets | None
    thinking_tags: tuple[str, str] | None
    progress: bool
    parallel: str | Parallel | None


class LLMOptions(EngineArgs, total=False):
    """All of them."""

    speculation: SpeculationLike | None


class Kind(NamedTuple):
    """What an argument may be."""

    types: tuple[type, ...]
    words: str


FLAG = Kind((bool,), "True or False")
KINDS = {
    "model": Kind((str, Path), "a folder, a GGUF file or a built-in name"),
    "dtype": Kind((str, torch.dtype), "a text such as 'bfloat16'"),
    "quantization": Kind((str,), "a text such as 'int8'"),
    "device": Kind((str, torch.device), "a text such as 'cpu'"),
    "kv_dtype": Kind((str,), "a text such as 'int8'"),
    "kv_memory": Kind(
        (int, float, str), "bytes, a text such as '2GiB', a share such as 0.3, or None"
    ),
    "kv_spill": Kind((int, str), "bytes, a text such as '2GiB', or None"),
    "max_model_len": Kind((int,), "a whole number of tokens, or None"),
    "prompt_rows": Kind((int,), "a whole number of at least 1"),
    "max_running": Kind((int,), "a whole number of at least 1"),
    "prefix_caching": FLAG,
    "speculation": Kind(
        (str, Speculation, Mapping), "a drafter's name, a Speculation or a settings file"
    ),
    "auto": Kind((str, Path, Callable), "a callable, a settings file or None"),  # type: ignore[arg-type]
    "remember": Kind((bool, str), "True, False or 'by_key'"),
    "modes": Kind((str, Path, Mapping), "presets by name, the path of a JSON file, or None"),
    "thinking_tags": Kind((Sequence,), "two texts such as ('<think>', '</think>'), or None"),
    "progress": FLAG,
    "parallel": Kind((str, Parallel), "a Parallel, a text such as 'ep=8,tp=1', or None"),
}


def checks_arguments(build: Build) -> Build:
    """For the __init__ of `LLM`: one sentence about an unknown name, or a value of a wrong type, before
    anything is loaded."""
    signature = inspect.signature(build)
    optional = {name for name, one in signature.parameters.items() if one.default is None}

    @wraps(build)
    def checked(owner: Any, *arguments: Any, **options: Any) -> None:
        refuse_unknown(options, KINDS)
        for name, value in signature.bind(owner, *arguments, **options).arguments.items():
            if name in KINDS and not (value is None and name in optional):
                _check(name, value)
        build(owner, *arguments, **options)

    return cast(Build, checked)


def _check(name: str, value: object) -> None:
    types, words = KINDS[name]
    stray = isinstance(value, bool) and bool not in types  # a bool is an int
    stray |= name == "remember" and value not in (True, False, "by_key")
    stray |= "at least 1" in words and isinstance(value, int) and value < 1
    if stray or value == "" or not isinstance(value, types):
        raise ValueError(f"{name}={shown(value)} must be {words}")


def context_length(asked: int | None, most: int) -> int:
    """Most tokens of prompt plus answer."""
    context = most if asked is None else asked
    if not 2 <= context <= most:
        raise ValueError(f"max_model_len={shown(context)} is outside 2..{most}")
    return context


def chooser_of(auto: ModeRouter | str | Path | None, folder: Path) -> ModeRouter:
    """How mode "auto" chooses: the checkpoint's own way, or that of a settings file, unless one is given."""
    if auto is None:
        return checkpoint_selector(folder)
    return read_selector(auto, folder) if isinstance(auto, str | Path) else auto


def kv_pages(
    memory: float | str | None,
    max_requests: int,
    context: int,
    model: Model,
    prefix_caching: bool = True,
    spill: int | str | None = None,
) -> KVCache:
    """KV pages for a model, for texts that fit it and `context`; with a file for those that have no room,
    if it may take that many bytes."""
    config, kind = model.config, model.storage
    page_bytes = kind.page_size * kind.token_bytes(
        layers=config.layers, kv_heads=config.kv_heads, head_dim=config.head_dim, dtype=model.dtype
    )
    pages = page_budget(
        memory,
        page_bytes=int(page_bytes * kind.share),
        page_size=kind.page_size,
        context=min(context, config.context),
        max_requests=max_requests,
        device=model.device,
        dp_ranks=kind.dp_ranks,
    )
    try:
        kv = kv_cache_for(model, pages, kind.page_size, prefix_caching)
    except (MemoryError, OSError, OverflowError, torch.OutOfMemoryError):
        raise too_much(memory, model.device) from None
    if spill is not None:
        most = parse_bytes(spill, "kv_spill") if isinstance(spill, str) else spill
        kv.spill = PageFile(kv.storage, kv.page_size, most, cache_folder() / "kv_spill")
    return kv
