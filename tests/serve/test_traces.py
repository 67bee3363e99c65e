"""The traces that a server keeps of requests."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from checkpoints import write_moge
from tokenizers_tiny import write_bpe

from fastslow.llm import LLM
from fastslow.serve.api.ask import Ask
from fastslow.serve.engines.local import LocalEngine
from fastslow.serve.observe import traces

SAMPLING = {"max_tokens": 12, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moge")
    write_bpe(folder)
    return write_moge(folder, vocab=320, num_hidden_layers=2, hidden_size=32)


def test_traces_of_requests_that_asked_for_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "MOST", 2)
    monkeypatch.setattr(traces.TraceLog.__init__, "__defaults__", (2,))

    async def main() -> None:
        engine = LocalEngine(LLM(folder, kv_memory="4MiB", progress=False), "tiny")

        async def answer(id: str, *, trace: bool = True, n: int = 1) -> list[int]:
            ids: list[int] = []
            ask = Ask(id, [5, 6, 7], {**SAMPLING, "n": n}, speculation="off", trace=trace)
            async for piece in engine.stream(ask):
                if piece.token_ids and trace and n == 1:
                    now = await engine.trace(id)
                    assert now is not None and now["running"]
                    ids += piece.token_ids
            return ids

        ids = await answer("a")
        trace = await engine.trace("a")
        assert trace is not None and (trace["id"], trace["running"]) == ("a", False)
        told = [t for step in trace["choices"][0]["steps"] for t in step["tokens"]]
        assert told == ids and len(told) == 12
        await answer("b", trace=False)
        assert await engine.trace("b") is None and await engine.trace("c") is None
        await answer("c", n=2)
        several = await engine.trace("c")
        assert several is not None and [one["index"] for one in several["choices"]] == [0, 1]
        await answer("d")
        assert await engine.trace("a") is None and await engine.trace("d") is not None
        await engine.close()

    asyncio.run(main())
