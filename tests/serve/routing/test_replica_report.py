"""The report of an engine to routers, and what of it is believed."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from gate import SOON, Gate, settled
from loops import within
from serve_engines import answer_of, asked, settings_of

from fastslow.serve.engines.routing.report import read_report

CHAT = [{"role": "user", "content": "hello, how are you"}]


@within()
async def test_it_says_what_runs_waits_and_how_fast(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await settings_of(folder, max_running=2).open()
    for mode in ("fast", "deep"):
        await answer_of(engine, asked(mode=mode, prompt=CHAT))  # measures what steps take
    llm = engine._llm.llm
    first = engine.report()
    assert (first.answers, first.deep, first.urgent) == (0, 0, 0) and first.pages == llm.stats().pages
    gate = Gate(llm, monkeypatch)
    soon = {"base": "fast", "latency_ms": 5000.0}
    modes: list[Any] = ["deep", {"base": "deep", "thinking_budget": 5}, "fast", soon]
    asks = [asked(f"{number}", 200, CHAT, mode=mode) for number, mode in enumerate(modes)]
    tasks = [asyncio.create_task(answer_of(engine, ask)) for ask in asks]
    assert await asyncio.to_thread(gate.reached.acquire, timeout=SOON)
    ends = time.monotonic() + SOON
    while (said := engine.report()).answers < 4 and time.monotonic() < ends:
        await asyncio.to_thread(gate.steps)  # what came while a step ran is taken in after it
    assert sum(said.running.values()) == 2 and sum(said.waiting.values()) == 2
    assert (said.deep, said.urgent) == (2, 1) and said.queue_seconds >= said.quick_queue_seconds > 0
    gate.open()
    await asyncio.gather(*tasks)
    assert settled(llm)
    said = engine.report()
    assert said.answers == said.deep == said.urgent == 0
    assert said.deep_queue_seconds == said.quick_queue_seconds == 0
    assert {"fast", "deep"} <= set(said.step_seconds)
    assert all(0 < seconds < SOON for seconds in said.step_seconds.values())
    assert said.prompt_rate > 0 and said.queue_seconds > 0
    assert read_report(json.loads(json.dumps(said.to_dict()))) == said
    assert read_report({}) is None and read_report({"deep": "many"}) is None
    await engine.close()
