"""`LocalEngine`: what `test_engine_protocol.py` does not ask of every engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_moge
from requests_made import made_request
from tokenizers_tiny import write_bpe

from fastslow import LLM
from fastslow.output import Piece
from fastslow.serve.api.engine import Engine
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.engines import local
from fastslow.serve.engines.local import LocalEngine
from fastslow.serve.engines.settings import EngineSettings

SAMPLING = {"max_tokens": 12, "ignore_eos": True}
TEN: dict[str, Any] = {"max_tokens": 10, "ignore_eos": True}
LONG = {"max_tokens": 400, "ignore_eos": True}
TEMPLATE = (
    "{% for m in messages %}<think>{{ m['content'] }}</think>{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}no{% endif %}"
)
CHAT = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moge")
    write_bpe(folder, TEMPLATE, 320)
    return write_moge(folder, vocab=320, num_hidden_layers=1)


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(
        folder,
        kv_memory="8MiB",
        progress=False,
        max_running=1,
        max_model_len=500,
        thinking_tags=("<think>", "</think>"),
    ) as llm:
        yield llm


@pytest.fixture
def engine(llm: LLM) -> LocalEngine:
    return LocalEngine(llm, "tiny", max_waiting=1)


async def read(engine: Engine, ask: GenerateRequest) -> list[Piece]:
    return [piece async for piece in engine.stream(ask)]


def test_stopping_a_thought_by_id(engine: LocalEngine, llm: LLM) -> None:
    async def main() -> None:
        assert not await engine.stop_thinking("a"), "unknown"
        stopped = False
        ask = made_request("a", "<think>", LONG, allow_special=True)
        async for piece in engine.stream(ask):
            stopped = stopped or await engine.stop_thinking("a")
            last = piece
        assert stopped and last.output is not None
        assert last.output.metrics.thinking_ended == "caller" and last.output.text

    asyncio.run(main())


def test_steps_are_measured_before_the_first_request(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int | None] = []

    def seconds(model: object, groups: int | None, identity: str) -> object:
        measured.append(groups)
        return (1, 2), (0.001, 0.002)

    monkeypatch.setattr("fastslow.llm.step_seconds", seconds)

    async def run() -> None:
        options = {"kv_memory": "8MiB", "progress": False}
        engine = await EngineSettings(str(folder), "tiny", options).open()
        assert sorted(measured, key=str) == [1, None]  # of the fast mode, and of the deep one
        for mode in ("fast", "deep", "auto"):
            await read(engine, made_request("one", "hello", TEN, mode=mode))
        await engine.close()

    asyncio.run(run())
    assert len(measured) == 2


def test_traces_of_requests_that_asked_for_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "MOST_TRACES", 2)

    async def main() -> None:
        engine = LocalEngine(LLM(folder, kv_memory="4MiB", progress=False), "tiny")

        async def answer(id: str, *, trace: bool = True, n: int = 1) -> list[int]:
            ids: list[int] = []
            ask = made_request(id, [5, 6, 7], {**SAMPLING, "n": n}, speculation="off", trace=trace)
            async for piece in engine.stream(ask):
                if piece.token_ids and trace and n == 1:
                    now = await engine.trace(id)
                    assert now is not None and now["running"]
                    ids += piece.token_ids
            return ids

        ids = await answer("a")
        trace = await engine.trace("a")
        assert trace is not None and (trace["id"], trace["running"]) == ("a", False)
        noted = [t for step in trace["choices"][0]["steps"] for t in step["tokens"]]
        assert noted == ids and len(noted) == 12
        await answer("b", trace=False)
        assert await engine.trace("b") is None and await engine.trace("c") is None
        await answer("c", n=2)
        several = await engine.trace("c")
        assert several is not None and [one["index"] for one in several["choices"]] == [0, 1]
        await answer("d")
        assert await engine.trace("a") is None and await engine.trace("d") is not None
        await engine.close()

    asyncio.run(main())
