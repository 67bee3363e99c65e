"""`LocalEngine`: what `test_engine_protocol.py` does not ask of every engine."""

from pathlib import Path

import pytest
from loops import within
from serve_engines import answer_of, asked, settings_of

from fastslow.serve.engines import local


@within()
async def test_stopping_a_thought_by_id(folder: Path) -> None:
    engine = await settings_of(folder).open()
    assert not await engine.stop_thinking("a"), "unknown"
    stopped = False
    async for piece in engine.stream(asked("a", 400, "<think>", allow_special=True)):
        stopped = stopped or await engine.stop_thinking("a")
        last = piece
    assert stopped and last.output is not None
    assert last.output.metrics.thinking_ended == "caller" and last.output.text
    await engine.close()


@within()
async def test_steps_are_measured_before_the_first_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int | None] = []

    def seconds(model: object, groups: int | None, identity: str, patience: float) -> object:
        measured.append(groups)
        return (1, 2), (0.001, 0.002)

    monkeypatch.setattr("fastslow.llm.step_seconds", seconds)
    engine = await settings_of(folder).open()
    assert sorted(measured, key=str) == [1, None]  # of the fast mode, and of the deep one
    for mode in ("fast", "deep", "auto"):
        await answer_of(engine, asked(mode=mode))
    await engine.close()
    assert len(measured) == 2


@within()
async def test_traces_of_requests_that_asked_for_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MOST_TRACES", 2)
    engine = await settings_of(folder).open()

    async def answer(id: str, *, trace: bool = True, n: int = 1) -> list[int]:
        ids: list[int] = []
        ask = asked(id, 12, [5, 6, 7], sampling={"n": n}, speculation="off", trace=trace)
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
