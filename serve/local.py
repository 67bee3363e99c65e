"""An engine in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from typing import Any

from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.handle import RequestHandle
from fastslow.llm import LLM
from fastslow.output import Piece
from fastslow.serve.ask import Ask
from fastslow.serve.engine import ModelCard, NotReady
from fastslow.serve.sampling import sampling_of
from fastslow.serve.traces import TraceLog

# What templates call the variable that keeps thoughts of earlier turns, and the value that does.
KEEPING = {"clear_thinking": False, "preserve_thinking": True}


class LocalEngine:
    """`Engine` of an `LLM`, which it closes."""

    def __init__(self, llm: LLM, name: str) -> None:
        self._llm = llm
        self._running: dict[str, RequestHandle] = {}
        self._traces = TraceLog()
        self._open = True
        units = RoutedUnits.of(llm.model.config)
        inputs = llm._requests.inputs
        switch = inputs.switch
        self._card = ModelCard(
            name=name,
            created=int(time.time()),
            context=inputs.context,
            modes={name: mode.model_dump(mode="json") for name, mode in llm.modes.items()},
            units=units.name,
            most=units.most,
            thinks=inputs.tags is not None,
            has_head=llm.has_head,
            efforts=switch.levels if switch.kind == "effort" else (),
            keeps_thoughts=_switch_of_thoughts(inputs.template_names),
            device=str(llm.model.device),
            tool_format=llm.tool_calls.form.name,
            tool_tokens=llm.tool_calls.tokens,
        )

    @property
    def card(self) -> ModelCard:
        return self._card

    @property
    def ready(self) -> bool:
        return self._open

    @property
    def why_not_ready(self) -> str:
        return "" if self._open else "the server is closing"

    async def stream(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        if not self._open:
            raise NotReady("the server is closing")
        sampling = sampling_of(ask)
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
            if not ask.streamed:
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
        requests = self._llm._requests
        mode, _ = requests.mode(ask.mode, ask.prompt)
        requests.inputs.measure(ask.prompt)
        options = ask.allow_special, ask.chat_template_kwargs
        encoded = await asyncio.to_thread(requests.inputs.encode, ask.prompt, mode, *options)
        return encoded.tokens

    async def detokenize(self, tokens: list[int]) -> str:
        tokenizer, last = self._llm.tokenizer, self._llm.model.config.vocab_size - 1
        for place, token in enumerate(tokens):
            if token > last:
                raise ValueError(f"tokens[{place}]={token} is outside the vocabulary 0..{last}")
        if tokenizer is None:
            raise ValueError("this checkpoint has no tokenizer")
        return tokenizer.decode(tokens, skip_special=False)

    async def token_bytes(self, tokens: Sequence[int]) -> list[tuple[bytes, bool]]:
        tokenizer = self._llm.tokenizer
        if tokenizer is None:
            return [(b"", False)] * len(tokens)
        hidden = tokenizer.special_ids
        return [(tokenizer.token_bytes(token), token not in hidden) for token in tokens]

    async def close(self, drain: float = 0.0) -> None:
        self._open = False
        end = time.monotonic() + drain
        while self._running and time.monotonic() < end:
            await asyncio.sleep(0.05)
        self._llm.close()


def _switch_of_thoughts(names: Collection[str]) -> tuple[str, bool] | None:
    """The variable of a template that keeps old thoughts; None: it reads none."""
    return next((switch for switch in KEEPING.items() if switch[0] in names), None)
