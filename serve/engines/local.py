"""An engine in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from loguru import logger

from fastslow.async_llm import MAX_WAITING, AsyncLLM
from fastslow.engine.core.step_trace import StepTrace
from fastslow.engine.fair_table import FairTable
from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.params import Mode
from fastslow.llm import LLM
from fastslow.output import GenerationError, Output, Piece
from fastslow.request.handle import RequestHandle
from fastslow.serve.api.engine import ModelCard, NotReady, WarmPrefix
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.engines.routing.report import ReplicaReport, replica_report
from fastslow.serve.engines.routing.request import may_take_long

GRAMMAR = "the request failed: the grammar "  # of who asked for it, and no fault of the server
# What templates call the variable that keeps thoughts of earlier turns, and the value that does.
KEEPING = {"clear_thinking": False, "preserve_thinking": True, "keep_past_thinking": True}
MOST_TRACES = 256  # of the last requests that asked for one


class LocalEngine:
    """`Engine` of an `LLM`, which it closes."""

    def __init__(self, llm: LLM, name: str, max_waiting: int = MAX_WAITING) -> None:
        self._llm = AsyncLLM.around(llm, max_waiting)
        self._running: dict[str, RequestHandle] = {}
        self._cancelled: set[str] = set()  # of them, by who asked
        self._traces = FairTable[str, Sequence[StepTrace]](MOST_TRACES)  # of requests that are over
        units = RoutedUnits.of(llm.model.config)
        inputs = llm._inputs
        switch = inputs.switch
        keeping = [kept for kept in KEEPING.items() if kept[0] in inputs.template_names]
        self._card = ModelCard(
            name=name,
            created=int(time.time()),
            context=llm.max_model_len,
            modes={name: _fields(mode) for name, mode in llm.modes.items()},
            units=units.name,
            most=units.most,
            thinks=llm.thinks,
            has_head=llm.has_head,
            efforts=switch.levels if switch.kind == "effort" else (),
            keeps_thoughts=next(iter(keeping), None),
            device=str(llm.model.device),
            tool_format=llm.tool_calls.form.name,
            tool_tokens=llm.tool_calls.tokens,
            sampling=inputs.sampling,
        )

    @property
    def card(self) -> ModelCard:
        return self._card

    @property
    def ready(self) -> bool:
        return self._llm.accepting and not self.broken

    @property
    def broken(self) -> bool:
        """True where the engine's thread is gone, by its own error."""
        return self._llm.llm._worker.broken

    @property
    def why_not_ready(self) -> str:
        if self.ready:
            return ""
        return "the engine broke" if self.broken else "the server is closing"

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        if not self.ready:
            raise NotReady(self.why_not_ready, refused=True)
        handle = self._llm.begin(request.prompt, request.options)
        self._running[request.id] = handle
        try:
            if not request.streamed:
                output = await handle
                self._check_whole(request, output)
                yield Piece(output=output)
                return
            held: list[Piece] = []  # text that was not sent yet when an answer ended
            async with aclosing(aiter(handle)) as pieces:
                async for piece in pieces:
                    if not self._llm.accepting and request.whole:
                        if piece.output is not None:
                            self._check_whole(request, piece.output)
                        elif not piece.token_ids:  # if this closing cut it, it is not the answer's
                            held.append(piece)
                            continue
                    for one in held:
                        yield one
                    held.clear()
                    yield piece
        except GenerationError as error:
            if GRAMMAR in str(error):
                raise ValueError(str(error)) from None
            raise
        finally:
            if self._running.get(request.id) is handle:
                del self._running[request.id]
                self._cancelled.discard(request.id)
            if traces := handle.step_traces:  # the answer itself is let go of
                self._traces.put(request.options.share, request.id, traces)
            handle.cancel()

    async def warm(self, prefix: WarmPrefix) -> None:
        """Read what prompts begin with, and keep it: requests of its mode find it, whoever asks. It is the operator's
        text; what follows it in a prompt is shared as without it. ValueError: it does not fit."""
        mode, pin = prefix["mode"], self._llm.llm.pin
        try:
            pinned = await asyncio.to_thread(pin, prefix["prompt"], mode=mode, every_key=True)
        except ValueError as error:
            raise ValueError(f"warm {prefix['name']} in mode {mode!r}: {error}") from None
        said = "{} is warm in mode {!r}: {} tokens in {} pages of the prefix cache"
        logger.info(said, prefix["name"], mode, pinned.tokens, pinned.pages)

    async def cancel(self, id: str) -> bool:
        handle = self._running.get(id)
        if handle is not None:
            self._cancelled.add(id)
            handle.cancel()
        return handle is not None

    async def stop_thinking(self, id: str) -> bool:
        handle = self._running.get(id)
        return handle is not None and await self._llm.stop_thinking(handle)

    async def trace(self, id: str) -> Mapping[str, Any] | None:
        running = self._running.get(id)
        traces = self._traces.find(id) if running is None else running.step_traces
        if not traces:
            return None
        choices = [{"index": i, **trace.to_dict()} for i, trace in enumerate(traces)]
        return {"id": id, "running": running is not None, "choices": choices}

    async def stats(self) -> Mapping[str, Any]:
        return self._llm.stats().to_dict()

    def report(self) -> ReplicaReport:
        """Report how busy it is, for routers. It never waits."""
        deep = {name for name, mode in self._card.modes.items() if may_take_long(mode)}
        return replica_report(self._llm.llm.current_load(), deep, time.time())

    async def tokenize(self, request: GenerateRequest) -> list[int]:
        llm, options = self._llm.llm, request.options.given()
        return await asyncio.to_thread(lambda: llm.tokenize(request.prompt, **options))

    async def detokenize(self, tokens: list[int]) -> str:
        return await asyncio.to_thread(self._llm.llm.detokenize, tokens)

    async def token_bytes(self, tokens: Sequence[int]) -> list[tuple[bytes, bool]]:
        tokenizer = self._llm.llm.tokenizer
        if tokenizer is None:
            return [(b"", False)] * len(tokens)
        hidden = tokenizer.special_ids
        return [(tokenizer.token_bytes(token), token not in hidden) for token in tokens]

    async def close(self, drain: float = 0.0) -> None:
        await self._llm.drain(drain)
        await self._llm.close()

    def _check_whole(self, request: GenerateRequest, output: Output) -> None:
        """NotReady: this engine closed, and cut an answer that is wanted whole."""
        cut = any(choice.finish_reason == "cancelled" for choice in output.choices)
        if cut and request.whole and request.id not in self._cancelled and not self._llm.accepting:
            raise NotReady("the engine closed before the answer was whole", refused=True)


def _fields(mode: Mode) -> dict[str, Any]:
    """As plain values; of its sampling those that it gives, as only they count."""
    own = mode.sampling
    given = None if own is None else own.model_dump(mode="json", exclude_unset=True)
    return {**mode.model_dump(mode="json"), "sampling": given}
