"""The arguments of `LLM`, and what they mean for a model's context and pages."""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from loguru import logger
from pydantic import ConfigDict, Field, InstanceOf
from pydantic.dataclasses import dataclass

from fastslow.engine.checked import kept_as
from fastslow.engine.host.files import cache_folder
from fastslow.engine.kv.budget import NoRoom, page_budget, parse_bytes, too_much, window_ring
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.kv.page_file import PageFile
from fastslow.engine.model.base import Model, kv_cache_for
from fastslow.engine.parallel.sharding import Parallel
from fastslow.engine.params import Count, Positive, Speculation, shown
from fastslow.policies.auto import checkpoint_selector, read_selector
from fastslow.policies.mode_router import ModeRouter
from fastslow.request.options import Presets, SpeculationLike

SHORTEST = 2048  # tokens: a context that the engine chooses by itself is no shorter
CHECKED = ConfigDict(strict=True, arbitrary_types_allowed=True)
Given = str | Mapping[Any, Any] | None


@dataclass(frozen=True, config=CHECKED)
class EngineArgs:
    """The arguments of `LLM`.

    Args:
        model: a checkpoint folder, a GGUF file (any one of a split model), a built-in name (smollm2-moge,
            smollm2), or the name of a hub: owner/name, owner/name@revision, or owner/name:Q4_K_M for a GGUF
            file of the repository.
        dtype: "auto" (the checkpoint's own), "bfloat16", "float32", "float16".
        quantization: "int8" or "int4" weights, on the CPU; "w8a8" for a checkpoint that is quantised
            so; "none" runs the dtype; "auto" runs such a checkpoint, or a GGUF file, in its own numbers if
            no dtype is asked for.
        device: "auto", "cpu", "cuda" or "npu".
        kv_dtype: of keys and values: "int8" halves them (a scale per token and head, on the CPU), "model"
            keeps the model's own, "auto" is int8 for w8a8 checkpoints that are made for it.
        kv_memory: memory for keys and values: bytes, text such as "2GiB", or a share (float) of
            what is free; None = a share of 0.3.
        kv_spill: cached prefixes that memory has no room for go to a file of at most this size, such
            as "2GiB", in the cache folder, and are read back when a prompt begins so. On the CPU.
        max_model_len: most tokens of prompt plus answer; None = what the model can, halved until one such request
            fits kv_memory.
        prompt_rows: most rows of prompts read in one step (chunked prefill).
        max_running: most requests in one step.
        prefix_caching: share the KV of texts that start alike.
        speculation: what "auto" means where a mode does not say: a drafter's name, a `Speculation`,
            the path of a settings file that `fastslow tune` wrote, or None for the best that there is.
        auto: how mode "auto" chooses: a callable from a `PromptFacts` to a preset's name; a settings file
            of `fastslow tune --modes` (with its presets, where `modes` is None); or None for the rules
            under "auto" in the checkpoint's `fastslow.json`, else for built-in ones.
        remember: keep answers in memory to draft later ones from. A drafted token is output only where
            the model says it anyway, but `metrics.accepted` tells that it was said before. "by_key", for
            an LLM that serves several users: a call without a `memory_key` shares no answers.
        modes: presets that join or change the checkpoint's: name -> `Mode` or its fields, or the
            path of a JSON file that holds them as `fastslow.json` does.
        thinking_tags: the texts between which the model thinks; None = what the checkpoint's
            `fastslow.json` says, else openPangu's or `<think>`, if it has them.
        progress: draw a bar while a model is fetched or loaded.
        parallel: divide the model among ranks: a `Parallel`, or text such as "ep=8,tp=1"; None = this
            process alone. The ranks are started now and end with `close`. Under torchrun its processes
            are the ranks ("auto" = all of them); all but the first serve inside this call until the
            first is done, and then exit. kv_memory is the sum over all ranks.

    Raises:
        ValueError: one sentence about what does not fit.
        RuntimeError: a rank failed.
    """

    model: str | Path = "smollm2-moge"
    _: KW_ONLY
    dtype: str | torch.dtype = "auto"
    quantization: str = "auto"
    device: str | torch.device = "auto"
    kv_dtype: str = "auto"
    kv_memory: int | float | str | None = None
    kv_spill: int | str | None = None
    max_model_len: int | None = None
    prompt_rows: Positive = 512
    max_running: Positive = 64
    prefix_caching: bool = True
    speculation: Annotated[SpeculationLike | None, kept_as(InstanceOf[Speculation] | Given)] = None
    auto: Annotated[
        ModeRouter | str | Path | None, kept_as(str | Path | InstanceOf[Callable] | None)
    ] = None
    remember: bool | Literal["by_key"] = True
    modes: Annotated[Presets | None, kept_as(Path | Given)] = None
    thinking_tags: Annotated[tuple[str, str] | None, Field(strict=False)] = None
    progress: bool = True
    parallel: str | Parallel | None = None

    def context(self, most: int) -> int:
        """Most tokens of prompt plus answer, for a model that can `most`."""
        context = most if self.max_model_len is None else self.max_model_len
        if not 2 <= context <= most:
            raise ValueError(f"max_model_len={shown(context)} is outside 2..{most}")
        return context

    def own_pages(self, model: Model) -> tuple[KVCache, int]:
        """KV pages of the model that answers, and its context: `max_model_len`, or what the model can and one request
        has room for. ValueError: not even for SHORTEST tokens."""
        context = self.context(model.config.context)
        while True:
            try:
                kv = self.pages(
                    model, context, self.prefix_caching, self.kv_spill, self.prompt_rows
                )
            except NoRoom as error:
                if self.max_model_len is not None or context < 2 * SHORTEST:
                    raise ValueError(str(error)) from None
                context //= 2
            else:
                return kv, context

    def router(self, folder: Path) -> ModeRouter:
        """Return the router of mode "auto": the one that was given, or the checkpoint's own."""
        if self.auto is None:
            return checkpoint_selector(folder)
        return read_selector(self.auto, folder) if isinstance(self.auto, str | Path) else self.auto

    def pages(
        self,
        model: Model,
        context: int,
        prefix_caching: bool = True,
        spill: int | str | None = None,
        rows: int = 0,
    ) -> KVCache:
        """KV pages for a model, for texts that fit it and `context`; with a file for those that have no
        room, if it may take that many bytes. rows: most rows of text in a step; 0: texts are read at once."""
        config, kind = model.config, model.storage
        layout, longest = config.state_layout, min(context, config.context)
        ring = window_ring(layout, kind.page_size, longest, rows)
        whole = ring and (spill is not None or not kind.has_windows)
        ring = 0 if whole else ring
        page_bytes = kind.page_size * kind.token_bytes(layout, model.dtype)
        window_bytes = 0
        if ring:
            window_bytes = kind.page_size * kind.token_bytes(layout.within(True), model.dtype)
        snapshot_bytes = layout.snapshot_bytes(model.dtype)
        snapshot_bytes += -(-layout.window // kind.page_size) * window_bytes
        budget = page_budget(
            self.kv_memory,
            page_bytes=int((page_bytes - window_bytes) * kind.share),
            page_size=kind.page_size,
            context=longest,
            max_requests=self.max_running,
            device=model.device,
            dp_ranks=kind.dp_ranks,
            request_bytes=layout.request_bytes(model.dtype) + ring * window_bytes,
            snapshot_bytes=snapshot_bytes if prefix_caching else 0,
        )
        if whole:
            why = "kv_spill needs" if kind.has_windows else "this device or number of ranks needs"
            logger.info("layers with windows keep all their pages: {} them", why)
        try:
            pages, places, snapshots = budget
            kv = kv_cache_for(model, pages, kind.page_size, prefix_caching, places, snapshots, ring)
        except (MemoryError, OSError, OverflowError, torch.OutOfMemoryError):
            raise too_much(self.kv_memory, model.device) from None
        if spill is not None:
            most = parse_bytes(spill, "kv_spill") if isinstance(spill, str) else spill
            folder = cache_folder() / "kv_spill"
            kv.evicted.file = PageFile(kv.storage, kv.page_size, most, folder)
        return kv


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class AsyncArgs(EngineArgs):
    """The arguments of `AsyncLLM`: those of `LLM`, and one more.

    Args:
        max_waiting: most answers that may wait beside those that run (`max_running`); a call beyond them
            raises `Busy`. Each of n answers counts.
    """

    max_waiting: Count = 256
