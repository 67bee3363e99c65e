"""The whole engine on simulated NPUs: the tokens of the CPU, whatever drafts and however steps are cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import npu_kernels
import numpy as np
import pytest
import torch
from engine_tools import PLENTY, Ask, Bench, Setting, outcome
from exact_tools import CHAINS, DENSE_DRAFTERS, ORACLES, TREES, VOCAB, make_bench, tell
from npu_tools import CHIPS, simulated

from fastslow.engine.backends.accelerator.decoder import PagedDecoder
from fastslow.engine.params import SamplingParams

PROMPTS = [
    tuple(np.random.default_rng(n).integers(5, VOCAB, n).tolist()) for n in (3, 21, 120, 131, 6)
]
ATTENTION = {
    "Ascend910B1": ("npu_fused_infer_attention_score",),
    "Ascend310P3": ("_npu_paged_attention", "_npu_paged_attention_splitfuse_v2"),
}


class Pair(NamedTuple):
    """One checkpoint on two devices."""

    chip: str
    cpu: Bench
    npu: Bench

    @property
    def model(self) -> PagedDecoder:
        assert isinstance(self.npu.model, PagedDecoder)
        return self.npu.model

    def check(
        self, asks: list[Ask], setting: Setting = PLENTY, warm: list[Ask] | None = None
    ) -> dict[str, int]:
        """All that a caller sees equals plain decoding on the CPU; returns what drafts came to."""
        tell(self.cpu, asks)
        for name in ORACLES:
            self.npu.drafters[name] = self.cpu.drafters[name]
        requests = self.npu.run(asks, setting, warm or ())
        for ask, request in zip(asks, requests, strict=True):
            assert outcome(request) == outcome(self.cpu.alone(ask)), (ask, request.spec_stats)
        names = ("drafted", "accepted", "preemptions", "cached")
        return {n: sum(getattr(r.spec_stats, n) for r in requests) for n in names}


def pair_on(chip: str, folder: Path, kind: str) -> Iterator[Pair]:
    cpu = make_bench(folder, kind)
    with simulated(chip):
        yield Pair(chip, cpu, make_bench(folder, kind, device="npu"))


@pytest.fixture(scope="module", params=CHIPS)
def moge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    yield from pair_on(request.param, tmp_path_factory.mktemp("moge"), "moge")


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 14, "ignore_eos": True, **fields})


def mixed() -> list[Ask]:
    """Every drafter, all modes, short and long prompts; one is sampled without a draft."""
    asks = [Ask(PROMPTS[1], params(temperature=0.8), "off", seed=5)]
    for i, drafter in enumerate(["off", *CHAINS, *TREES, *ORACLES]):
        groups = (None, 0, None, 2)[i % 4]
        asks.append(Ask(PROMPTS[i % 5], params(max_tokens=14 + i % 5), drafter, groups=groups))
    return asks


def test_a_mixed_batch(moge: Pair) -> None:
    npu_kernels.calls.clear()
    sums = moge.check(mixed())
    assert sums["drafted"] > sums["accepted"] > 50
    for name in ATTENTION[moge.chip]:
        assert npu_kernels.calls[name] > 0, name


@pytest.mark.parametrize(
    ("drafter", "groups"),
    [("off", None), ("ngram", 0), ("model", None), ("told", 0), ("self0", None)],
)
def test_small_batches_are_recorded_and_replayed(
    moge: Pair, drafter: str, groups: int | None
) -> None:
    replays = moge.model.recorder.replays
    asks = [Ask(prompt, params(), drafter, 4, groups) for prompt in PROMPTS[:3]]
    moge.check(asks)
    assert moge.model.recorder.replays > replays


def test_under_pressure(moge: Pair) -> None:
    """Prompts in small chunks, and too few pages, so that requests are preempted and computed again."""
    drafters = {"self tree": None, "told": 0, "tree": 2}
    longer = params(max_tokens=20)
    asks = [Ask(PROMPTS[2], longer, name, 4, groups) for name, groups in drafters.items()]
    asks.append(Ask(PROMPTS[3], longer, "ngram", 4))
    sums = moge.check(asks, Setting(pages=4, prompt_rows=50))
    assert sums["preemptions"] > 0


def test_a_shared_beginning_is_not_read_again(moge: Pair) -> None:
    asks = [Ask(PROMPTS[3], params(), drafter) for drafter in ("off", "forked", "skip")]
    warm = [Ask(PROMPTS[3], params(max_tokens=2))]
    assert moge.check(asks, warm=warm)["cached"] == 3 * 128


def test_nobodys_rows_write_to_nobodys_slots(moge: Pair) -> None:
    """A step of three rows is filled up to four, again and again; nothing else of the pages changes."""
    core = moge.npu.core()
    requests = [moge.npu.request(n, Ask(PROMPTS[4], params())) for n in range(3)]
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


@pytest.mark.parametrize("chip", CHIPS)
def test_a_dense_model(chip: str, tmp_path: Path) -> None:
    for pair in pair_on(chip, tmp_path, "dense"):
        asks = [Ask(PROMPTS[i % 5], params(), d, seed=i) for i, d in enumerate(DENSE_DRAFTERS)]
        sums = pair.check(asks)
        assert sums["accepted"] > 0
