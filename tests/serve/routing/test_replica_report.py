"""What an engine says of itself to routers, and what of it is believed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from checkpoints import write_moge
from gate import SOON, Gate, settled
from loops import within
from requests_made import made_request
from tokenizers_tiny import write_bpe

from fastslow import LLM, SamplingParams
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.engines.local import LocalEngine
from fastslow.serve.engines.routing.report import read_report

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


@within()
async def test_it_says_what_runs_waits_and_how_fast(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = LocalEngine(llm, "tiny")
    first = engine.report()
    assert (first.answers, first.deep, first.urgent) == (0, 0, 0)
    assert first.pages == llm.stats().pages
    gate = Gate(llm, monkeypatch)
    soon = {"base": "fast", "latency_ms": 5000.0}
    modes = ["deep", {"base": "deep", "thinking_budget": 5}, "fast", soon]
    tasks = []
    for number, mode in enumerate(modes):
        ask = made_request(f"{number}", CHAT, LONG, mode=mode)
        tasks.append(asyncio.create_task(answer(engine, ask)))
    assert await asyncio.to_thread(gate.reached.acquire, timeout=SOON)
    ends = time.monotonic() + SOON
    while (said := engine.report()).answers < 4 and time.monotonic() < ends:
        await asyncio.to_thread(gate.steps)  # what came while a step ran is taken in after it
    assert sum(said.running.values()) == 2
    assert sum(said.waiting.values()) == 2
    assert (said.deep, said.urgent) == (2, 1)
    assert said.queue_seconds >= said.quick_queue_seconds > 0
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
