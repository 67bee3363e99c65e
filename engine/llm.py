"""The public face. This file composes everything else, and is the only one that does."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self, cast

from loguru import logger

from fastslow.draft.each import Each
from fastslow.engine.accept import RULES
from fastslow.engine.advice import advice
from fastslow.engine.call import as_messages, sampling_in, spread
from fastslow.engine.closed import Closed
from fastslow.engine.core import Core
from fastslow.engine.cost import step_seconds
from fastslow.engine.door import Door, Entry, Prompt
from fastslow.engine.drafting import Drafting
from fastslow.engine.handle import Handle
from fastslow.engine.kv.budget import page_budget
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.locate import find_tokenizer, resolve_model
from fastslow.engine.model.base import Model
from fastslow.engine.model.loader import load_model
from fastslow.engine.noise import sibling_seed
from fastslow.engine.output import GenerationError, Output, Piece
from fastslow.engine.params import Mode, SamplingParams, Speculation
from fastslow.engine.progress import bar
from fastslow.engine.request import Request
from fastslow.engine.stop import Stopper
from fastslow.engine.text.detokenizer import Detokenizer
from fastslow.engine.text.message import Message
from fastslow.engine.text.template import load_template
from fastslow.engine.text.thought import tags_for
from fastslow.engine.tune.tuned import read_settings
from fastslow.engine.types import Policy
from fastslow.engine.worker import Worker
from fastslow.policies.clock import Clock
from fastslow.policies.length import AdaptiveLength, FixedLength
from fastslow.policies.modes import find_mode, load_modes
from fastslow.policies.odds import Odds
from fastslow.policies.pace import Pace

PAGE_SIZE = 16
MOST_NODES = 24  # of an adaptive draft


class LLM:
    """A model ready to answer, from any number of threads.

    Args:
        model: a checkpoint folder, a GGUF file of a llama model, or a built-in name: smollm2-moge,
            smollm2.
        dtype: "auto" (the checkpoint's own), "bfloat16", "float32", "float16".
        quantization: "int8" or "int4" weights, on the CPU; "none" runs the dtype; "auto" runs a
            4-bit file as it is if no dtype is asked for.
        device: "auto", "cpu", "cuda" or "npu".
        kv_memory: memory for keys and values: bytes, text such as "2GiB", or a share (float) of
            what is free; None = a share of 0.3.
        max_model_len: most tokens of prompt and answer together; None = what the model can.
        prompt_rows: most rows of prompts read in one step (chunked prefill).
        max_running: most requests in one step.
        prefix_caching: share the KV of texts that start alike.
        speculation: what "auto" means where a mode does not say: a drafter's name, a `Speculation`,
            or the path of a settings file that `fastslow tune` wrote.
        remember: keep answers in memory to draft later ones from (they reach nobody unless the model
            says them anyway).
        progress: draw a bar while a model is fetched or loaded.

    Raises:
        ValueError: one sentence about what does not fit.
    """

    def __init__(
        self,
        model: str | Path = "smollm2-moge",
        *,
        dtype: str = "auto",
        quantization: str = "auto",
        device: str = "auto",
        kv_memory: float | str | None = None,
        max_model_len: int | None = None,
        prompt_rows: int = 512,
        max_running: int = 64,
        prefix_caching: bool = True,
        speculation: str | Speculation = "auto",
        remember: bool = True,
        progress: bool = True,
    ) -> None:
        for name, value in (("prompt_rows", prompt_rows), ("max_running", max_running)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        folder = resolve_model(model)
        self._load_options: dict[str, Any] = {
            "dtype": dtype,
            "quantization": quantization,
            "device": device,
            "progress": progress,
        }
        self._kv_options: dict[str, Any] = {"kv_memory": kv_memory, "max_requests": max_running}
        self.model = load_model(folder, **self._load_options)
        config = self.model.config
        context = config.context if max_model_len is None else max_model_len
        if not 2 <= context <= config.context:
            raise ValueError(f"max_model_len={context} is outside 2..{config.context}")
        self.tokenizer = find_tokenizer(folder)
        self.modes = load_modes(folder, config.groups)
        template = None
        if self.tokenizer is not None:
            template = load_template(folder, self.tokenizer, config.architecture)
        self._tags = tags_for(self.tokenizer, template) if self.tokenizer is not None else None
        self._door = Door(config, self.tokenizer, template, context)
        self._kv = self._cache_for(self.model, context, prefix_caching)
        identity = f"{folder.resolve()} {quantization}"
        self._clock = Clock(lambda groups: Pace(*step_seconds(self.model, groups, identity)))
        self._drafting = Drafting(
            folder,
            self.model,
            self._kv,
            self.tokenizer,
            self._load_options,
            lambda model: self._cache_for(model, min(context, model.config.context), True),
            remember,
            self._clock.worth,
        )
        self._usual = Speculation()
        self._advised: set[str] = set()
        self._ids = itertools.count()
        self._odds: dict[Speculation, Odds] = {}
        drafter = Each(self._drafting.made, self._clock.drafted)
        self._core = Core(self.model, self._kv, drafter, prompt_rows, max_running, self._clock)
        self._usual = self._speculation(speculation, Mode())
        self._worker = Worker(self._core)

    def generate(
        self,
        prompts: Any,
        sampling: SamplingParams | Sequence[SamplingParams | None] | None = None,
        *,
        mode: str | Mode | Sequence[str | Mode] = "deep",
        speculation: str | Speculation | Sequence[str | Speculation] = "auto",
        progress: bool = True,
    ) -> Any:
        """Answer one prompt or many.

        Args:
            prompts: text (taken as it is), token ids, chat messages (put through the template), or
                a list of such prompts.
            sampling: for all prompts, or a list zipped with them. Fields that are not given are the
                mode's, where it has them.
            mode: "fast", "deep", another preset of the checkpoint, or a `Mode`; or a list.
            speculation: "auto", "off", a drafter's name, a `Speculation`, or the path of a settings
                file (*.json); or a list.
            progress: for a list of prompts, draw a bar on a terminal.

        Returns:
            One `Output` for one prompt; for a list, a list in the same order.

        Raises:
            ValueError: one sentence about the first thing that does not fit; nothing has run then.
            GenerationError: the engine failed on a request; it holds all outputs.
        """
        batch, single = self._door.split(prompts)
        count = len(batch)
        params = spread("sampling", sampling, count)
        modes = [self._mode(m) for m in spread("mode", mode, count)]
        settings = spread("speculation", speculation, count)
        jobs = [self._job(*job) for job in zip(batch, params, modes, settings)]
        handles = [handle for _, group in jobs for handle in group]
        self._worker.submit([h.request for h in handles])
        try:
            waited = bar(jobs, "Answering") if progress and not single else jobs
            outputs = [self._output(entry, group) for entry, group in waited]
        except BaseException:  # Ctrl-C too: nobody waits for the answers any more
            self._worker.cancel([h.request for h in handles])
            raise
        errors = [c.error for o in outputs for c in o.choices if c.error is not None]
        if errors:
            raise GenerationError(f"{len(errors)} request(s) failed: {errors[0]}", outputs)
        return outputs[0] if single else outputs

    def chat(
        self,
        messages: str | Sequence[Message],
        sampling: SamplingParams | None = None,
        *,
        mode: str | Mode = "deep",
        speculation: str | Speculation = "auto",
    ) -> Output:
        """Answer a conversation, or one user message given as text; see `generate`."""
        turns = as_messages(messages)
        output: Output = self.generate(turns, sampling, mode=mode, speculation=speculation)
        return output

    def stream(
        self,
        prompt: Any,
        sampling: SamplingParams | None = None,
        *,
        mode: str | Mode = "deep",
        speculation: str | Speculation = "auto",
    ) -> Iterator[Piece]:
        """One prompt's answer in pieces, as it is made; the last piece carries the `output`.

        Everything is checked before this returns, and the first `next` starts the request; leaving
        the loop early cancels it.

        Raises:
            ValueError: as `generate`; also for a list of prompts, or n > 1.
            GenerationError: while iterating, if the engine failed on the request.
        """
        batch, single = self._door.split(prompt)
        if not single:
            raise ValueError("stream takes one prompt; give a list to generate")
        chosen = self._mode(mode)
        entry, handles = self._job(batch[0], sampling, chosen, speculation, streaming=True)
        if len(handles) > 1:
            raise ValueError(f"n={len(handles)} cannot be streamed; use generate, or n=1")
        return self._pieces(entry, handles[0])

    def stream_chat(
        self, messages: str | Sequence[Message], *arguments: Any, **options: Any
    ) -> Iterator[Piece]:
        """`stream` for a conversation, or one user message given as text."""
        return self.stream(as_messages(messages), *arguments, **options)

    @property
    def has_head(self) -> bool:
        """Whether a trained draft head belongs to the model."""
        return self._drafting.has_head

    def close(self) -> None:
        """Cancel what runs, end the engine's thread, free the model. Closing twice is fine."""
        self._worker.close()
        self.model = self._kv = self._core = cast(Any, Closed())
        self._drafting.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pieces(self, entry: Entry, handle: Handle) -> Iterator[Piece]:
        # Submitted here, not by `stream`: of a generator that is dropped unread nothing ever runs.
        self._worker.submit([handle.request])
        try:
            while (piece := handle.next()) is not None:
                if piece.text or piece.reasoning or piece.token_ids:
                    yield piece
            output = self._output(entry, [handle])
            if output.choices[0].error is not None:
                raise GenerationError(f"the request failed: {output.choices[0].error}", [output])
            yield Piece(output=output)
        finally:
            self._worker.cancel([handle.request])

    def _job(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        mode: Mode,
        speculation: str | Speculation,
        streaming: bool = False,
    ) -> tuple[Entry, list[Handle]]:
        """A checked prompt with one handle for each of its n answers; nothing is submitted."""
        params = sampling_in(mode, params)
        self._door.check_params(params)
        entry = self._door.enter(prompt, mode)
        settings = self._speculation(speculation, mode)
        opened = self._tags is not None and entry.text is not None
        opened = opened and self._tags.opened_by(entry.text)  # type: ignore[union-attr, arg-type]
        seed = secrets.randbits(63) if params.seed is None else params.seed
        handles = []
        for i in range(params.n):
            request = self._request(entry, params, mode, settings, sibling_seed(seed, i))
            handles.append(Handle(request, mode.name, self._tags, opened, streaming))
        return entry, handles

    def _request(
        self, entry: Entry, params: SamplingParams, mode: Mode, settings: Speculation, seed: int
    ) -> Request:
        room = min(params.max_tokens, self._door.context - len(entry.tokens))
        reach = len(entry.tokens) + room - 1
        if not self._kv.fits(reach):
            raise ValueError(
                f"a text of {reach} tokens needs {self._kv.pages_for(reach)} KV pages; there are "
                f"{self._kv.pages}: raise kv_memory or lower max_tokens"
            )
        end_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            end_ids |= self._eos_ids()
        detokenizer = None
        if self.tokenizer is not None:
            shown = self._tags.ids(self.tokenizer) if self._tags else frozenset[int]()
            before = [] if entry.chat else entry.tokens[-8:]
            detokenizer = Detokenizer(self.tokenizer, keep=shown, after=before)
        drafter = self._drafting.make(settings)
        rule = settings.accept.replace("auto", "token")
        reproducible = settings.accept == "reproducible"
        reproducible |= settings.accept == "auto" and params.seed is not None
        request = Request(
            id=next(self._ids),
            tokens=list(entry.tokens),
            prompt_length=len(entry.tokens),
            params=params,
            speculation=drafter,
            policy=self._length(settings, drafter),
            stopper=Stopper(params, end_ids, room, detokenizer),
            groups=mode.groups,
            seed=seed,
            reach=reach,
            end_ids=end_ids,
            rule=RULES["reproducible" if reproducible else rule],
            reproducible=reproducible,
        )
        request.root = self._core.prefix_root(request, mode.groups)
        return request

    def _length(self, settings: Speculation, drafter: Speculation) -> Policy:
        if settings.drafter == "off":
            return FixedLength(0)
        if settings.nodes is not None:
            return FixedLength(settings.nodes)
        odds = self._odds.setdefault(drafter, Odds())
        return AdaptiveLength(MOST_NODES, odds, self._clock, drafter)

    def _output(self, entry: Entry, handles: Sequence[Handle]) -> Output:
        choices = [handle.wait() for handle in handles]
        for choice in choices:
            said = advice(choice.metrics)
            if said is not None and choice.metrics.drafter not in self._advised:
                self._advised.add(choice.metrics.drafter)  # once each
                logger.warning(said)
        first = handles[0].request
        prompt_logprobs = None
        if first.params.prompt_logprobs is not None:
            prompt_logprobs = [None, *first.prompt_logprobs]
        return Output(entry.text, list(entry.tokens), choices, prompt_logprobs)

    def _mode(self, mode: str | Mode) -> Mode:
        return find_mode(mode, self.modes, self.model.config.groups)

    def _eos_ids(self) -> frozenset[int]:
        own = frozenset() if self.tokenizer is None else self.tokenizer.eos_ids
        return own | frozenset(self.model.config.eos_ids)

    def _speculation(self, wish: str | Speculation, mode: Mode) -> Speculation:
        """The settings that a wish means, with their drafter made."""
        if isinstance(wish, Speculation):
            settings = wish
        elif not isinstance(wish, str):
            kind = type(wish).__name__
            raise ValueError(f"speculation must be a name or Speculation, not {kind}")
        elif wish == "auto":
            settings = mode.speculation or self._usual
        elif wish.endswith(".json"):
            settings = read_settings(wish)
        else:
            settings = Speculation(drafter=wish)
        self._drafting.make(settings)
        return settings

    def _cache_for(self, model: Model, context: int, prefix_caching: bool) -> KVCache:
        config = model.config
        pages = page_budget(
            **self._kv_options,
            page_bytes=config.kv_bytes_per_token(model.dtype) * PAGE_SIZE,
            page_size=PAGE_SIZE,
            context=context,
            device=model.device,
        )
        return KVCache.for_model(model, pages, PAGE_SIZE, prefix_caching)
