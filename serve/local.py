"""An engine in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.params import SamplingParams
from fastslow.handle import RequestHandle
from fastslow.llm import LLM
from fastslow.output import Piece
from fastslow.serve.ask import Ask
from fastslow.serve.engine import ModelCard, NotReady
from fastslow.serve.traces import TraceLog


class LocalEngine:
    """`Engine` of an `LLM`, which it closes."""

    def __init__(self, llm: LLM, name: str) -> None:
        self._llm = llm
        self._running: dict[str, RequestHandle] = {}
        self._traces = TraceLog()
        self._open = True
        units = RoutedUnits.of(llm.model.config)
        self._card = ModelCard(
            name=name,
            created=int(time.time()),
            context=llm.model.config.context,
            modes={name: mode.model_dump(mode="json") for name, mode in llm.modes.items()},
            units=units.name,
            most=units.most,
            thinks=False,
            has_head=llm.has_head,
        )

    @property
    def card(self) -> ModelCard:
        return self._card

    @property
    def ready(self) -> bool:
        return self._open

    async def stream(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        if not self._open:
            raise NotReady("the server is closing")
        sampling = SamplingParams(**ask.sampling) if ask.sampling else None
        handle = self._llm.submit(
            ask.prompt,
            sampling,
            mode=ask.mode,
            speculation=ask.speculation,
            timeout=ask.timeout,
            memory_key=ask.memory_key,
            allow_special=ask.allow_special,
            chat_template_kwargs=ask.chat_template_kwargs,
            trace=ask.trace,
        )
        self._running[ask.id] = handle
        try:
            if sampling is not None and sampling.n > 1:
                yield Piece(output=await handle)
                return
            async for piece in handle:
                yield piece
        finally:
            self._running.pop(ask.id, None)
            self._traces.keep(ask.id, handle)
            handle.cancel()

    async def cancel(self, id: str) -> bool:
        handle = self._running.get(id)
        if handle is not None:
            handle.cancel()
        return handle is not None

    async def stop_thinking(self, id: str) -> bool:
        return False

    async def trace(self, id: str) -> Mapping[str, Any] | None:
        return self._traces.of(id, self._running.get(id))

    async def stats(self) -> Mapping[str, Any]:
        return self._llm.stats().to_dict()

    async def tokenize(self, ask: Ask) -> list[int]:
        raise NotImplementedError

    async def detokenize(self, tokens: list[int]) -> str:
        raise NotImplementedError

    async def close(self, drain: float = 0.0) -> None:
        self._open = False
        end = time.monotonic() + drain
        while self._running and time.monotonic() < end:
            await asyncio.sleep(0.05)
        self._llm.close()
