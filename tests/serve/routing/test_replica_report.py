"""What an engine says of itself to routers, and what of it is believed."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from checkpoints import write_moge
from gate import SOON, Gate, settled
from requests_made import made_request
from routing_tools import report
from tokenizers_tiny import write_bpe

from fastslow import LLM, SamplingParams
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.engines.local import LocalEngine
from fastslow.serve.engines.routing.report import ReportReader
from fastslow.serve.engines.routing.request import may_take_long

CHAT = [{"role": "user", "content": "hello, how are you"}]
LONG: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("moge")
    write_bpe(folder, "{% for m in messages %}{{ m['content'] }}{% endfor %}", 320)
    write_moge(folder, vocab=320, num_hidden_layers=1)
    more: dict[str, Any] = {"thinking_tags": ("<think>", "</think>"), "max_model_len": 500}
    with LLM(folder, kv_memory="8MiB", progress=False, max_running=2, **more) as llm:
        for mode in ("fast", "deep"):
            llm.generate(CHAT, SamplingParams(max_tokens=5), mode=mode)  # measures what steps take
        yield llm


async def answer(engine: LocalEngine, ask: GenerateRequest) -> None:
    async for _ in engine.stream(ask):
        pass


def test_it_tells_what_runs_waits_and_how_fast(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LocalEngine(llm, "tiny")
    first = engine.report()
    assert (first.answers, first.deep, first.urgent) == (0, 0, 0)
    assert first.pages == llm.stats().pages
    gate = Gate(llm, monkeypatch)
    soon = {"base": "fast", "latency_ms": 5000.0}
    modes = ["deep", {"base": "deep", "thinking_budget": 5}, "fast", soon]

    async def main() -> None:
        tasks = []
        for number, mode in enumerate(modes):
            ask = made_request(f"{number}", CHAT, LONG, mode=mode)
            tasks.append(asyncio.create_task(answer(engine, ask)))
        assert await asyncio.to_thread(gate.reached.acquire, timeout=SOON)
        ends = time.monotonic() + SOON
        while (told := engine.report()).answers < 4 and time.monotonic() < ends:
            await asyncio.to_thread(gate.steps)  # what came while a step ran is taken in after it
        assert sum(told.running.values()) == 2
        assert sum(told.waiting.values()) == 2
        assert (told.deep, told.urgent) == (2, 1)
        assert told.queue_seconds >= told.quick_queue_seconds > 0
        gate.open()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert settled(llm)
    told = engine.report()
    assert told.answers == told.deep == told.urgent == 0
    assert told.deep_queue_seconds == told.quick_queue_seconds == 0
    assert {"fast", "deep"} <= set(told.step_seconds)
    assert all(0 < seconds < SOON for seconds in told.step_seconds.values())
    assert told.prompt_rate > 0 and told.queue_seconds > 0
    assert ReportReader().read("a", json.loads(json.dumps(told.to_dict()))) == told


DAMAGES: dict[str, tuple[object, str]] = {
    "deep": (-1, "`int` >= 0.*deep"),
    "pages": ("many", "Expected `int`, got `str`.*pages"),
    "running": ({"fast": 0.5}, "running"),
    "at": (float("inf"), "`float` <=.*at"),
    "page_tokens": (0, "page_tokens"),
}


def test_a_damaged_report_counts_as_none_and_is_logged_once(logged: list[str]) -> None:
    for name, (value, said) in DAMAGES.items():
        reader, good = ReportReader(), report(1.0).to_dict()
        logged.clear()
        for _ in range(2):
            assert reader.read("a", good | {name: value}) is None
        assert len(logged) == 1 and re.search(said, logged[0])
        assert reader.read("a", good) == report(1.0)
        assert reader.read("a", {key: one for key, one in good.items() if key != "at"}) is None
        assert "missing required field `at`" in logged[-1]
    assert ReportReader().read("a", {}) is None and len(logged) == 2


@pytest.mark.parametrize(
    ("mode", "long"),
    [
        ({"thinking": "off"}, False),
        ({"thinking": "on"}, True),
        ({"thinking": "auto"}, True),
        ({"thinking": "off", "auto": True}, True),
        ({}, True),
    ],
)
def test_what_may_take_long(mode: dict[str, Any], long: bool) -> None:
    assert may_take_long(mode) is long
