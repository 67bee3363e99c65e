"""`LLM`: a model that is loaded and ready to answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Self, Unpack, cast, overload

from loguru import logger

from fastslow.call import (
    BatchOptions,
    CallOptions,
    Conversation,
    ListOf,
    ModeLike,
    Presets,
    Prompt,
    PromptOptions,
    Sampling,
    Samplings,
    SpeculationLike,
    as_messages,
    as_prompts,
    spread,
)
from fastslow.draft.router import DrafterRouter
from fastslow.drafters import DrafterFactory
from fastslow.engine.core.cost_curve import step_seconds
from fastslow.engine.core.engine_core import EngineCore
from fastslow.engine.core.worker import Worker
from fastslow.engine.host.progress import bar
from fastslow.engine.kv.budget import page_budget
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.base import Model, kv_cache_for
from fastslow.engine.parallel.open import ends_ranks_if_it_fails, open_model
from fastslow.engine.parallel.sharding import Parallel
from fastslow.engine.parallel.torchrun import join
from fastslow.engine.types import Chooser
from fastslow.handle import RequestHandle
from fastslow.input_processor import InputProcessor
from fastslow.models.locate import find_tokenizer, resolve_model
from fastslow.output import GenerationError, Output, Piece, advice
from fastslow.policies.auto import checkpoint_selector, read_selector
from fastslow.policies.modes import load_modes
from fastslow.policies.speculation.controller import SpeculationController
from fastslow.policies.speculation.step_cost import StepCostCurve
from fastslow.request_builder import RequestBuilder


class Closed:
    """Stands in for the parts of a closed LLM; every access raises RuntimeError."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError("this LLM is closed; make a new one")


class LLM:
    """A model ready to answer, from any number of threads.

    Args:
        model: a checkpoint folder, a GGUF file of a llama model, or a built-in name: smollm2-moge,
            smollm2.
        dtype: "auto" (the checkpoint's own), "bfloat16", "float32", "float16".
        quantization: "int8" or "int4" weights, on the CPU; "w8a8" for a checkpoint that is quantised
            so; "none" runs the dtype; "auto" runs such a checkpoint, or a 4-bit file, as it is if no
            dtype is asked for.
        device: "auto", "cpu", "cuda" or "npu".
        kv_dtype: of keys and values: "int8" halves them (a scale per token and head, on the CPU), "model"
            keeps the model's own, "auto" is int8 for w8a8 checkpoints that are made for it.
        kv_memory: memory for keys and values: bytes, text such as "2GiB", or a share (float) of
            what is free; None = a share of 0.3.
        max_model_len: most tokens of prompt plus answer; None = what the model can.
        prompt_rows: most rows of prompts read in one step (chunked prefill).
        max_running: most requests in one step.
        prefix_caching: share the KV of texts that start alike.
        speculation: what "auto" means where a mode does not say: a drafter's name, a `Speculation`,
            or the path of a settings file that `fastslow tune` wrote.
        auto: how mode "auto" chooses: a callable from a `Situation` to a preset's name; a settings file
            of `fastslow tune --modes` (with its presets, where `modes` is None); or None for the rules
            under "auto" in the checkpoint's `fastslow.json`, else for built-in ones.
        remember: keep answers in memory to draft later ones from. A drafted token is output only where
            the model says it anyway.
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

    @ends_ranks_if_it_fails
    def __init__(
        self,
        model: str | Path = "smollm2-moge",
        *,
        dtype: str = "auto",
        quantization: str = "auto",
        device: str = "auto",
        kv_dtype: str = "auto",
        kv_memory: float | str | None = None,
        max_model_len: int | None = None,
        prompt_rows: int = 512,
        max_running: int = 64,
        prefix_caching: bool = True,
        speculation: SpeculationLike = "auto",
        auto: Chooser | str | Path | None = None,
        remember: bool = True,
        modes: Presets | None = None,
        thinking_tags: tuple[str, str] | None = None,
        progress: bool = True,
        parallel: str | Parallel | None = None,
    ) -> None:
        if parallel is not None:
            join()
        for name, value in (("prompt_rows", prompt_rows), ("max_running", max_running)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        folder = resolve_model(model)
        load: dict[str, Any] = {"dtype": dtype, "quantization": quantization, "device": device}
        load |= {"kv_dtype": kv_dtype, "progress": progress}
        self._ranks = ExitStack()
        self.model = open_model(folder, parallel, self._ranks, **load)

        context = _context(max_model_len, self.model.config.context)
        chooser = _chooser(auto, folder)
        if modes is None and isinstance(auto, str | Path):
            modes = auto  # the presets that it chooses between
        self.modes = load_modes(folder, self.model.config.groups, modes)
        self.tokenizer = find_tokenizer(folder)
        self._inputs = inputs = InputProcessor(
            folder, self.model.config, self.tokenizer, context, thinking_tags
        )

        pages = partial(_pages, kv_memory, max_running, context)
        self._kv = pages(self.model, prefix_caching)
        identity = f"{folder.resolve()} {quantization}{getattr(self.model, 'parallel', '')}"
        identity += f" {kv_dtype}" if kv_dtype != "auto" else ""
        controller = SpeculationController(
            lambda groups: StepCostCurve(*step_seconds(self.model, groups, identity))
        )
        self._drafters = DrafterFactory(
            folder, self.model, self._kv, self.tokenizer, load, pages, remember, controller
        )
        drafter = DrafterRouter(self._drafters.made, controller.drafted)
        self._core = EngineCore(self.model, self._kv, drafter, prompt_rows, max_running, controller)

        self._requests = RequestBuilder(
            inputs, self._core, self._drafters, controller, self.modes, chooser, speculation
        )
        self._advised: set[str] = set()
        self._worker = Worker(self._core)

    @overload
    def generate(
        self, prompts: Prompt, sampling: Sampling = None, **options: Unpack[PromptOptions]
    ) -> Output: ...
    @overload
    def generate(
        self, prompts: ListOf[Prompt], sampling: Samplings = None, **options: Unpack[BatchOptions]
    ) -> list[Output]: ...
    def generate(
        self,
        prompts: Prompt | ListOf[Prompt],
        sampling: Samplings = None,
        *,
        mode: ModeLike | Sequence[ModeLike] = "deep",
        speculation: SpeculationLike | Sequence[SpeculationLike] = "auto",
        allow_special: bool | Sequence[bool] = False,
        progress: bool = True,
    ) -> Output | list[Output]:
        """Answer one prompt or many.

        Args:
            prompts: text (without a template), token ids, chat messages (put through the template), or
                a list of such prompts.
            sampling: for all prompts, or a list zipped with them. Fields that are not given are the
                mode's, where it has them.
            mode: "fast", "deep", "auto" or another preset; a `Mode`, or a dict of its fields, which with
                `base` changes a preset: {"base": "deep", "thinking_budget": 64}; a callable from a
                `Situation` to a preset's name; or a list.
            speculation: "auto", "off", a drafter's name, a `Speculation`, or the path of a settings
                file (*.json); or a list.
            allow_special: special tokens that a prompt spells, such as <|im_end|>, are marks; otherwise
                they are text, since a user may have written them. Or a list.
            progress: for a list of prompts, draw a bar on a terminal.

        Returns:
            One `Output` for one prompt; for a list, a list in the same order.

        Raises:
            ValueError: one sentence about the first thing that does not fit; nothing has run then.
            GenerationError: the engine failed on a request; it holds all outputs.
        """
        batch, single = self._requests.inputs.split(prompts)
        options = (
            *(("sampling", sampling), ("mode", mode), ("speculation", speculation)),
            ("allow_special", allow_special),
        )
        each = [spread(name, value, len(batch)) for name, value in options]
        jobs = [self._requests.build(*job) for job in zip(batch, *each)]
        handles = [handle for group in jobs for handle in group]
        self._worker.submit([h.request for h in handles])
        try:
            waited = bar(jobs, "Answering") if progress and not single else jobs
            outputs = [self._output(group) for group in waited]
        except BaseException:  # Ctrl-C too: no caller waits for the answers now
            self._worker.cancel([request for h in handles for request in h.requests])
            raise
        errors = [c.error for o in outputs for c in o.choices if c.error is not None]
        if errors:
            raise GenerationError(f"{len(errors)} request(s) failed: {errors[0]}", outputs)
        return outputs[0] if single else outputs

    @overload
    def chat(
        self, messages: Conversation, sampling: Sampling = None, **options: Unpack[PromptOptions]
    ) -> Output: ...
    @overload
    def chat(
        self,
        messages: ListOf[Conversation],
        sampling: Samplings = None,
        **options: Unpack[BatchOptions],
    ) -> list[Output]: ...
    def chat(self, messages: Any, sampling: Any = None, **options: Any) -> Any:
        """Answer a conversation, or one user message given as text, or a list of such; see `generate`."""
        return self.generate(as_prompts(messages), sampling, **options)

    def stream(
        self,
        prompt: Prompt,
        sampling: Sampling = None,
        *,
        mode: ModeLike = "deep",
        speculation: SpeculationLike = "auto",
        allow_special: bool = False,
    ) -> Iterator[Piece]:
        """One prompt's answer in pieces, as it is made; the last piece carries the `output`.

        Everything is checked before this returns, and the first `next` starts the request; leaving
        the loop early cancels it.

        Raises:
            ValueError: as `generate`; also for a list of prompts, or n > 1.
            GenerationError: while iterating, if the engine failed on the request.
        """
        batch, single = self._requests.inputs.split(prompt)
        if not single:
            raise ValueError("stream takes one prompt; give a list to generate")
        handles = self._requests.build(
            batch[0], sampling, mode, speculation, allow_special, streaming=True
        )
        if len(handles) > 1:
            raise ValueError(f"n={len(handles)} cannot be streamed; use generate, or n=1")
        return self._pieces(handles[0])

    def stream_chat(
        self, messages: Conversation, sampling: Sampling = None, **options: Unpack[CallOptions]
    ) -> Iterator[Piece]:
        """`stream` for a conversation, or one user message given as text."""
        return self.stream(as_messages(messages), sampling, **options)

    def forget_prompts(self) -> None:
        """Empty the prefix cache. Requests that run go on, but the KV that they write from now on is
        not shared.

        Raises:
            RuntimeError: this LLM is closed.
        """
        self._worker.between_steps(self._kv.clear_prefix)

    @property
    def has_head(self) -> bool:
        """Whether a trained draft head belongs to the model."""
        return self._drafters.has_head

    def close(self) -> None:
        """Cancel what runs, end the engine's thread, free the model. Closing twice is fine."""
        self._worker.close()
        self._ranks.close()
        self.model = self._kv = self._core = self._requests = cast(Any, Closed())
        self._drafters.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pieces(self, handle: RequestHandle) -> Iterator[Piece]:
        # Not submitted by `stream`: a generator that is dropped before its first `next` runs nothing.
        self._worker.submit([handle.request])
        try:
            while (piece := handle.next()) is not None:
                if piece.text or piece.reasoning or piece.token_ids:
                    yield piece
            output = self._output([handle])
            if output.choices[0].error is not None:
                raise GenerationError(f"the request failed: {output.choices[0].error}", [output])
            yield Piece(output=output)
        finally:
            self._worker.cancel(handle.requests)

    def _output(self, handles: Sequence[RequestHandle]) -> Output:
        choices = [handle.wait() for handle in handles]
        for choice in choices:
            hint = advice(choice.metrics)
            if hint is not None and choice.metrics.drafter not in self._advised:
                self._advised.add(choice.metrics.drafter)  # once for a drafter
                logger.warning(hint)
        first, asked = handles[0].request, handles[0].prompt
        self._inputs.advise(asked, choices[0])
        prompt_logprobs = None
        if first.params.prompt_logprobs is not None:
            prompt_logprobs = [None, *first.prompt_logprobs]
        return Output(asked.text, list(asked.tokens), choices, prompt_logprobs)


def _context(asked: int | None, most: int) -> int:
    """Most tokens of prompt plus answer."""
    context = most if asked is None else asked
    if not 2 <= context <= most:
        raise ValueError(f"max_model_len={context} is outside 2..{most}")
    return context


def _chooser(auto: Chooser | str | Path | None, folder: Path) -> Chooser:
    """How mode "auto" chooses."""
    if auto is None:
        return checkpoint_selector(folder)
    if isinstance(auto, str | Path):
        return read_selector(auto, folder)
    if not callable(auto):
        raise ValueError(f"auto={auto!r} must be a callable or a settings file")
    return auto


def _pages(
    memory: float | str | None,
    max_requests: int,
    context: int,
    model: Model,
    prefix_caching: bool = True,
) -> KVCache:
    """KV pages for a model, for texts that fit it and `context`."""
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
    return kv_cache_for(model, pages, kind.page_size, prefix_caching)
