"""Layers with windows that have pages of their own: given back once no row sees them, and no token differs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import checkpoints
import engine_tools
import pytest
import torch
from engine_tools import Ask, Bench, Setting, finish
from exact_tools import make_bench, params
from kernel_tools import compiled
from loguru import logger

from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.loader import load_model
from fastslow.engine.kv.budget import context_bytes
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.base import Model, kv_cache_for
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.params import SamplingParams
from fastslow.llm import LLM

WINDOW, LONG = 9, params(max_tokens=20)
LATE = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": True}
LATE |= {"sliding_window": WINDOW, "max_window_layers": 1}  # of two layers the second sees so many tokens


def windowed(kv: KVCache) -> Any:
    assert kv.windows is not None
    return kv.windows


class WindowBench(Bench):
    """A bench whose target has own pages for the layers with windows."""

    places, snapshots = 1, 2

    def core(self, setting: Setting = engine_tools.PLENTY, asks: Any = None) -> Any:
        if setting is engine_tools.PLENTY:
            return super().core(setting, asks)
        usual = engine_tools.cache_for

        def cache(model: Model, pages: int = 256, size: int = 4) -> KVCache:
            if model is not self.model:
                return usual(model, pages, size)
            ring = 2 + -(-(WINDOW + setting.prompt_rows + 10) // size)
            return kv_cache_for(model, pages, size, True, self.places, self.snapshots, ring)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine_tools, "cache_for", cache)
            return super().core(setting, asks)


def make(folder: Path, **fields: Any) -> WindowBench:
    bench = make_bench(folder, "dense", **{**LATE, **fields})
    return WindowBench(bench.model, bench.drafters, bench.tokenizer)


RANDOM = random.Random(0)
STORY = [RANDOM.randrange(5, 320) for _ in range(150)]  # prompts begin as it does, and go on otherwise
PROMPTS = [
    (*STORY[:alike], *(RANDOM.randrange(5, 320) for _ in range(own)))
    for alike, own in ((0, 3), (40, 0), (64, 20), (32, 70), (120, 1), (96, 6))
]
DRAFTERS = "off", "ngram", "skip", "sampled", "model", "erring", "forked"


def schedules(bench: WindowBench, seeds: Sequence[int], size: int) -> dict[str, int]:
    """These prompts, answered twice by one engine, with any drafter; sums of what happened."""
    sums = dict.fromkeys(("cached", "preemptions", "accepted"), 0)
    known = {100 * turn + n: bench.alone(Ask(p, LONG)).tokens for turn in (0, 1) for n, p in enumerate(PROMPTS)}
    bench.drafters["erring"] = lambda kv: engine_tools.OracleDraft(known, lambda n: n % 5 == 3)
    bench.drafters["forked"] = lambda kv: engine_tools.OracleDraft(known, lambda n: n % 7 == 3, forked=True)
    for seed in seeds:
        rng = random.Random(seed)
        bench.places, bench.snapshots = rng.choice([1, 1, 2]), rng.choice([0, 3, 9])
        pages, rows, running = rng.choice([200, 900]) // size, rng.choice([5, 17, 40]), rng.choice([1, 3, 8])
        asks = [Ask(prompt, LONG, rng.choice(DRAFTERS), nodes=6) for prompt in PROMPTS]
        core = bench.core(Setting(pages, size, rows, running), asks)
        for turn in range(2):
            requests = [bench.request(100 * turn + n, ask) for n, ask in enumerate(asks)]
            finish(core, requests)
            for request in requests:
                assert request.tokens == known[request.id], (seed, turn, request.id)
                sums["cached"] += request.spec_stats.cached
                sums["preemptions"] += request.spec_stats.preemptions
                sums["accepted"] += sum(x.accepted for x in request.spec_stats.by_drafter.values())
        assert windowed(core.kv).counts.used == 0
    return sums


def test_random_schedules_on_plain_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "available", lambda: False)
    assert min(schedules(make(tmp_path), (3,), 4).values()) > 0


@compiled
@pytest.mark.parametrize(("dtype", "keys"), [("float32", "model"), ("bfloat16", "int8")])
def test_random_schedules_on_the_kernels(tmp_path: Path, dtype: str, keys: str) -> None:
    bench = make(tmp_path, dtype=dtype, load=partial(load_model, kv_dtype=keys))
    assert min(schedules(bench, range(4), 16).values()) > 0


def test_a_context_takes_its_full_layers_and_a_window_of_the_others(tmp_path: Path) -> None:
    """What keeps all pages says so in a line, and answers the same."""
    folder = checkpoints.write_family(tmp_path, "qwen2", num_hidden_layers=6, max_window_layers=1)
    fields: dict[str, Any] = {"prompt_rows": 64, "max_running": 1, "dtype": "float32", "speculation": "off"}
    said: list[str] = []
    sink = logger.add(lambda line: said.append(str(line)), filter=lambda record: "windows" in record["message"])
    whole = LLM(folder, kv_spill="1MB", **fields)
    logger.remove(sink)
    layout = whole._kv.storage.layout
    least = context_bytes(layout, torch.float32, 512, 64)
    assert least < 0.5 * 512 * layout.token_bytes(torch.float32) and whole._kv.windows is None
    assert len(said) == 1 and "layers with windows keep all their pages: kv_spill needs them" in said[0]
    with pytest.raises(ValueError, match="one request with a context of 512 tokens needs"):
        LLM(folder, kv_memory=least - 1, **fields)
    few = LLM(folder, kv_memory=least, **fields)
    kv = few._kv
    assert kv.pages == 32 and kv.windows is not None and kv.windows.counts == (kv.windows.ring, 0, 0)
    assert kv.storage.nbytes <= least + 10 * 16 * layout.token_bytes(torch.float32), "and a page of zeros"
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    for length in (480, 300, 480):
        prompt = [5 + n * n % 83 for n in range(length)]
        outs = [llm.generate(prompt, params) for llm in (whole, few)]
        assert outs[0].token_ids == outs[1].token_ids
    whole.close()
    few.close()


def test_a_pin_keeps_a_window(tmp_path: Path) -> None:
    folder = checkpoints.write_family(tmp_path, "mistral")
    layout = ModelConfig.from_folder(folder).state_layout
    assert not layout.within(False).rows, "all layers have a window"
    room = 2 * context_bytes(layout, torch.float32, 512, 64)
    with LLM(folder, prompt_rows=64, max_running=2, dtype="float32", kv_memory=room) as llm:
        windows = windowed(llm._kv)
        text = [5 + n % 7 for n in range(200)]
        params = SamplingParams(max_tokens=1)
        with llm.pin(text) as pin:
            for n in range(8):
                llm.generate([9 + n, *range(5, 80)] * 5, params)
            assert llm.generate([*text, 5], params).metrics.cached_tokens == pin.tokens == 192
            pins = [llm.pin([n, *text]) for n in range(1, windows.most_pins)]
            with pytest.raises(ValueError, match=f"layers with windows have room for {windows.most_pins}"):
                llm.pin([99 % 96, *text])
            assert pins
        llm._kv.check_integrity()
