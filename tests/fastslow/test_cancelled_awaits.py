"""A task may be cancelled at every await of `AsyncLLM`: nobody else notices, and nothing is left behind."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from gate import SOON, Gate, settled

from fastslow import LLM, AsyncLLM, RequestHandle, SamplingParams

LONG = SamplingParams(max_tokens=60, ignore_eos=True)
CALLS: dict[str, Callable[[AsyncLLM, RequestHandle], Awaitable[object]]] = {
    "generate": lambda served, _: served.generate("The", LONG),
    "chat": lambda served, _: served.chat("The", LONG),
    "next piece": lambda served, _: anext(served.stream("The", LONG)),
    "forget_prompts": lambda served, _: served.forget_prompts(),
    "stop_thinking": lambda served, running: served.stop_thinking(running),
    "drain": lambda served, _: served.drain(None),
    "close": lambda served, _: served.close(),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_cancelled_ends_nobody_else(
    llm: LLM, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(llm, monkeypatch)

    async def main() -> None:
        served = AsyncLLM.around(llm)
        if name == "close":
            monkeypatch.setattr(llm, "close", lambda: time.sleep(0.1))
        bystander = served.submit("quick", LONG)
        await asyncio.to_thread(gate.reached.acquire, timeout=SOON)  # inside a step
        task = asyncio.ensure_future(CALLS[name](served, bystander))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open()
        out = await asyncio.wait_for(bystander, SOON)
        assert out.finish_reason == "length" and len(out.token_ids) == 60

    asyncio.run(main())
    assert settled(llm)
    assert llm.generate("The", LONG, progress=False).finish_reason == "length"


def test_a_model_whose_loading_is_cancelled_is_closed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[LLM] = []
    begun, go = threading.Event(), threading.Event()
    real = LLM.__init__

    def slow(self: LLM, *arguments: object, **options: object) -> None:
        begun.set()
        assert go.wait(SOON)
        real(self, *arguments, **options)  # type: ignore[arg-type]
        loaded.append(self)

    monkeypatch.setattr(LLM, "__init__", slow)

    async def main() -> None:
        task = asyncio.create_task(AsyncLLM.load(folder, kv_memory="4MiB", progress=False))
        await asyncio.to_thread(begun.wait, SOON)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()

    asyncio.run(main())
    end = time.monotonic() + SOON
    while not (loaded and loaded[0]._worker.ended):
        assert time.monotonic() < end, "the engine's thread still runs"
        time.sleep(0.01)
