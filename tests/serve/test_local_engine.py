"""`LocalEngine`: the protocol of an engine, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_moge
from gate import SOON, Gate, settled
from tokenizers_tiny import write_bpe

from fastslow import LLM, SamplingParams
from fastslow.output import Piece
from fastslow.serve.api.ask import Ask
from fastslow.serve.api.engine import Busy, Engine, NotReady
from fastslow.serve.engines.engine_settings import EngineSettings
from fastslow.serve.engines.local import LocalEngine

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


async def read(engine: Engine, ask: Ask) -> list[Piece]:
    return [piece async for piece in engine.stream(ask)]


def test_its_card(engine: LocalEngine) -> None:
    card = engine.card
    assert (card.name, card.context, card.units, card.thinks) == ("tiny", 500, "groups", True)
    assert set(card.modes) >= {"fast", "deep"} and not card.has_head and engine.ready


def test_it_streams_what_the_llm_says(engine: LocalEngine, llm: LLM) -> None:
    async def main() -> None:
        *pieces, last = await read(engine, Ask("a", CHAT, {**TEN, "n": 2}, mode="fast"))
        assert last.output is not None and {piece.index for piece in pieces} == {0, 1}
        own = llm.generate(CHAT, SamplingParams(**TEN), mode="fast")
        assert last.output.token_ids == own.token_ids
        with pytest.raises(ValueError, match="^max_tokens"):
            await read(engine, Ask("b", CHAT, {"max_tokens": 0}))
        with pytest.raises(ValueError, match="^mode"):
            await read(engine, Ask("b", CHAT, mode="dep"))
        assert not await engine.cancel("a"), "it is over"
        assert (await engine.stats())["ended"]["length"] >= 3

    asyncio.run(main())
    assert settled(llm)


def test_it_says_when_it_is_busy_and_cancels_by_id(
    engine: LocalEngine, llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(llm, monkeypatch)

    async def main() -> None:
        tasks = [asyncio.create_task(read(engine, Ask(id, CHAT, LONG))) for id in ("a", "b")]
        await asyncio.sleep(0.01)
        with pytest.raises(Busy) as busy:
            await read(engine, Ask("c", CHAT, TEN))
        assert busy.value.retry_after > 0
        assert await engine.cancel("a") and await engine.cancel("b")
        gate.open()
        for task in tasks:
            (*_, last) = await task
            assert last.output is not None and last.output.finish_reason == "cancelled"
        left = engine.stream(Ask("d", CHAT, LONG))
        await anext(left)
        await left.aclose()
        assert not await engine.cancel("d")

    asyncio.run(main())
    assert settled(llm)


def test_tokenising_runs_nothing(engine: LocalEngine, llm: LLM) -> None:
    async def main() -> None:
        steps = llm.stats().steps
        fast, deep = [await engine.tokenize(Ask("a", CHAT, mode=mode)) for mode in ("fast", "deep")]
        assert await engine.detokenize(deep) == "<think>hello</think>"
        assert await engine.detokenize(fast) == "<think>hello</think>no", "the template's switch"
        own = await engine.tokenize(Ask("a", CHAT, chat_template_kwargs={"enable_thinking": False}))
        assert own == fast
        assert await engine.tokenize(Ask("a", [5, 6])) == [5, 6]
        with pytest.raises(ValueError, match="messages"):
            await engine.tokenize(Ask("a", [{"role": "x", "content": ""}]))
        for wrong in ([320], [-1]):
            with pytest.raises(ValueError, match=r"not an id in 0\.\.319"):
                await engine.detokenize(wrong)
        assert llm.stats().steps == steps

    asyncio.run(main())


def test_it_drains(folder: Path) -> None:
    async def main() -> None:
        engine = LocalEngine(LLM(folder, kv_memory="4MiB", progress=False), "tiny")
        task = asyncio.create_task(read(engine, Ask("a", CHAT, TEN)))
        await asyncio.sleep(0)
        async with asyncio.timeout(SOON):
            await engine.close(drain=SOON)
        assert not engine.ready
        with pytest.raises(NotReady):
            await read(engine, Ask("b", CHAT))
        (*_, last) = await task
        assert last.output is not None and last.output.finish_reason == "length"

    asyncio.run(main())


def test_stopping_a_thought_by_id(engine: LocalEngine, llm: LLM) -> None:
    async def main() -> None:
        assert not await engine.stop_thinking("a"), "unknown"
        told = False
        ask = Ask("a", "<think>", LONG, allow_special=True)
        async for piece in engine.stream(ask):
            told = told or await engine.stop_thinking("a")
            last = piece
        assert told and last.output is not None
        assert last.output.metrics.thinking_ended == "caller" and last.output.text

    asyncio.run(main())


def test_prediction_and_priority_reach_the_engine(engine: LocalEngine, llm: LLM) -> None:
    async def main() -> None:
        fixed = {"drafter": "ngram", "nodes": 6}
        (*_, plain) = await read(engine, Ask("a", CHAT, TEN))
        assert plain.output is not None
        text = plain.output.text
        (*_, last) = await read(engine, Ask("a", CHAT, TEN, speculation=fixed, prediction=text))
        assert last.output is not None
        assert last.output.token_ids == plain.output.token_ids
        metrics = last.output.metrics
        assert metrics.prediction_accepted + metrics.prediction_rejected > 0
        with pytest.raises(ValueError, match="^priority=5000"):
            await read(engine, Ask("a", CHAT, TEN, priority=5000))

    asyncio.run(main())


def test_steps_are_measured_before_the_first_request(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int | None] = []

    def seconds(model: object, groups: int | None, identity: str) -> object:
        measured.append(groups)
        return (1, 2), (0.001, 0.002)

    monkeypatch.setattr("fastslow.closing.step_seconds", seconds)

    async def run() -> None:
        options = {"kv_memory": "8MiB", "progress": False}
        engine = await EngineSettings(str(folder), "tiny", options).open()
        assert sorted(measured, key=str) == [1, None]  # of the fast mode, and of the deep one
        for mode in ("fast", "deep", "auto"):
            await read(engine, Ask("one", "hello", TEN, mode=mode))
        await engine.close()

    asyncio.run(run())
    assert len(measured) == 2
