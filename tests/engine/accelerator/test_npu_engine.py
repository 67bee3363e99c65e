"""The whole engine on simulated NPUs: the tokens of the CPU, whatever drafts and however steps are cut."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import npu_kernels
import numpy as np
import pytest
import torch
from engine_tools import Ask, Bench, Setting
from exact_tools import DENSE_DRAFTERS, VOCAB, check, make_bench, mixed, params, shorter
from npu_tools import CHIPS, simulated

from fastslow.engine.backends.accelerator.decoder import PagedDecoder

PROMPTS = [tuple(np.random.default_rng(n).integers(5, VOCAB, n).tolist()) for n in (3, 21, 120, 131, 6)]
SHORT = params(max_tokens=14)
ATTENTION = {
    "Ascend910B1": ("npu_fused_infer_attention_score",),
    "Ascend310P3": ("_npu_paged_attention", "_npu_paged_attention_splitfuse_v2"),
}


def bench_on(chip: str, folder: Path, kind: str) -> Iterator[Bench]:
    """A bench on a simulated chip; the CPU says what it must equal."""
    cpu = make_bench(folder, kind)
    with simulated(chip):
        bench = make_bench(folder, kind, device="npu")
        bench.alone = cpu.alone  # type: ignore[method-assign]
        yield bench


@pytest.fixture(scope="module", params=CHIPS)
def moge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    yield from bench_on(request.param, tmp_path_factory.mktemp("moge"), "moge")


def test_a_mixed_batch(moge: Bench) -> None:
    npu_kernels.calls.clear()
    sums = check(moge, shorter(mixed(moge), 14))
    assert 0 < sums["accepted"] < sums["drafted"]
    for name in ATTENTION[npu_kernels.CHIP.name]:
        assert npu_kernels.calls[name] > 0, name


def test_under_pressure(moge: Bench) -> None:
    """Prompts in small chunks, and too few pages, so that requests are preempted and computed again."""
    drafters = {"self1": None, "told": 0, "common": 2}
    longer = params(max_tokens=20)
    asks = [Ask(PROMPTS[2], longer, name, 4, groups) for name, groups in drafters.items()]
    asks.append(Ask(PROMPTS[3], longer, "ngram", 4))
    assert check(moge, asks, Setting(pages=4, prompt_rows=50))["preempted"] > 0


def test_a_shared_beginning_is_not_read_again(moge: Bench) -> None:
    asks = [Ask(PROMPTS[3], SHORT, drafter) for drafter in ("off", "forked", "skip")]
    assert check(moge, asks, warm=True)["cached"] == 3 * 128


def test_nobodys_rows_write_to_nobodys_slots(moge: Bench) -> None:
    """A step of three rows is filled up to four, again and again; nothing else of the pages changes."""
    assert isinstance(moge.model, PagedDecoder)
    core = moge.core()
    requests = [moge.request(n, Ask(PROMPTS[4], SHORT)) for n in range(3)]
    for request in requests:
        core.add(request)
    storage = core.kv.storage
    core.step()
    replays = moge.model.recorder.replays
    for _ in range(4):
        fresh = [core.kv.slots(r.id, r.computed, len(r.tokens)) for r in requests]
        others = np.setdiff1d(np.arange(storage.slots), np.concatenate(fresh))
        before = [side.clone() for side in storage.read(others)]
        core.step()
        assert all(map(torch.equal, before, storage.read(others)))
    assert moge.model.recorder.replays > replays
    core.end(requests, "cancelled", None)


@pytest.mark.parametrize("chip", [CHIPS[0], pytest.param(CHIPS[1], marks=pytest.mark.slow)])
def test_a_dense_model(chip: str, tmp_path: Path) -> None:
    for bench in bench_on(chip, tmp_path, "dense"):
        asks = [Ask(PROMPTS[i % 5], SHORT, d, seed=i) for i, d in enumerate(DENSE_DRAFTERS)]
        assert check(bench, asks)["accepted"] > 0
