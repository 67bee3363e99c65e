"""Experts per request in mixtures without groups: each row runs its own number, whatever runs beside it."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_family
from engine_tools import PLENTY, Ask, Bench, RandomDraft, Setting, answer
from kernel_tools import wanted
from pairs import pairwise
from pangu_v2_tools import write_moe

from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import BorrowedKV
from fastslow.draft.ngram import NgramDraft
from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.loader import load_model
from fastslow.engine.core.engine_core import EngineCore
from fastslow.engine.core.latency_budget import RunEverything
from fastslow.engine.model.base import Model
from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.params import SamplingParams
from fastslow.engine.sampling.probs import only_best, probs_at

VOCAB, CHOSEN = 24, 4
PROMPTS = [tuple(np.random.default_rng(n).integers(3, VOCAB, n).tolist()) for n in (9, 21)]
PARAMS = SamplingParams(max_tokens=16, ignore_eos=True)
PAIRS = (("ngram", "two tree"), ("fewest", "random"), ("skip", "two"))
KINDS: dict[str, dict[str, Any]] = {
    "pangu v2": {"num_mtp_layers": 0}, "qwen3_moe": {"mlp_only_layers": []},
    "not normed": {"mlp_only_layers": [], "norm_topk_prob": False}, "gpt_oss": {},
}  # fmt: skip
FORMS: dict[str, dict[str, str]] = {
    "plain torch": {"dtype": "float64"}, "float32": {"dtype": "float32"}, "int8": {"quantization": "int8"},
    "int4": {"quantization": "int4"},
}  # fmt: skip


def load(folder: Path, kind: str, form: str) -> Model:
    if form != "plain torch" and not wanted():
        pytest.skip("no compiler, or the kernels are switched off")
    fields = {"num_hidden_layers": 2, "num_experts_per_tok": CHOSEN, **KINDS[kind]}
    if kind == "pangu v2":
        write_moe(folder, vocab_size=VOCAB, **fields)
    else:
        family = "qwen3_moe" if kind == "not normed" else kind
        write_family(folder, family, vocab=VOCAB, **fields)
    model = load_model(folder, device="cpu", progress=False, **FORMS[form])
    assert isinstance(model, CpuDecoder) == (form != "plain torch")
    return model


class ExpertsBench(Bench):
    """A mixture, and drafters that run other numbers of its experts."""

    def __init__(self, model: Model) -> None:
        def own(kv: Any, count: int, model: Model = model) -> ModelDraft:
            return ModelDraft(model, BorrowedKV(kv), probs_at, count, only_best=only_best)

        super().__init__(model, {
            "ngram": lambda kv: NgramDraft(2, 1), "random": lambda kv: RandomDraft(),
            "fewest": lambda kv: own(kv, self.units.least), "two": lambda kv: own(kv, 2),
            "two tree": lambda kv: ModelDraft(model, BorrowedKV(kv), probs_at, 2, 3),
            "skip": lambda kv: own(kv, 2, model.layer_subset([0])),
        })  # fmt: skip
        self.units = RoutedUnits.of(model.config)
        self.counts = (None, self.units.least, self.units.least + 1, 3)

    def asks(self, pair: tuple[str, str]) -> list[Ask]:
        """Each prompt with each number of experts; the drafters of the pair in turn."""
        return [
            Ask(prompt, PARAMS, pair[(n + i) % 2], groups=count, seed=n)
            for n, prompt in enumerate(PROMPTS)
            for i, count in enumerate(self.counts)
        ]


MakeBench = Callable[[str, str], ExpertsBench]


@pytest.fixture(scope="module")
def bench_of(tmp_path_factory: pytest.TempPathFactory) -> MakeBench:
    return cache(lambda *of: ExpertsBench(load(tmp_path_factory.mktemp("experts"), *of)))


PRESSURE = Setting(prompt_rows=5, pages=12)


@pytest.mark.parametrize(
    ("kind", "form", "pair", "setting"), pairwise(tuple(KINDS), tuple(FORMS), PAIRS, (PLENTY, PRESSURE))
)
def test_drafted_answers_are_those_of_plain_decoding(
    bench_of: MakeBench, kind: str, form: str, pair: tuple[str, str], setting: Setting
) -> None:
    """Plenty: prefix hits. Pressure: chunks, few pages, preemption."""
    bench = bench_of(kind, form)
    asks, missing = bench.asks(pair), bench.units.least + 1
    warm = [ask.plain for ask in asks if ask.groups != missing] if setting is PLENTY else []
    requests = bench.run(asks, setting, warm)
    plain = [answer(bench.alone(ask)) for ask in asks]
    assert [answer(r) for r in requests] == plain
    assert len(set(map(tuple, plain))) > len(PROMPTS) * (len(bench.counts) - 1), "or else this proves nothing"
    assert sum(r.spec_stats.accepted for r in requests) > 0
    assert all(r.spec_stats.drafted > 0 for r in requests), "each drafter is met"
    if setting is PLENTY:
        cached = dict.fromkeys(bench.counts, 0)
        for ask, request in zip(asks, requests, strict=True):
            cached[ask.groups] += request.spec_stats.cached
        assert cached.pop(missing) == 0 and all(cached.values()), "nobody ran so many before"
    else:
        assert sum(r.spec_stats.preemptions for r in requests) > 0


class Timed(RunEverything):
    """A step takes a second for each expert of the request that runs most."""

    def seconds(self, groups: int | None, rows: int) -> float:
        return float(CHOSEN if groups is None else groups)


@pytest.mark.parametrize("kind", ["pangu v2", "qwen3_moe"])
@pytest.mark.parametrize(
    ("own", "target", "runs"), [(None, 9, None), (None, 3, 2), (None, 2, 1), (3, 2, 1), (None, 0.5, 0)]
)
def test_a_latency_target_leaves_out_experts(
    tmp_path: Path, kind: str, own: int | None, target: float, runs: int | None
) -> None:
    bench = ExpertsBench(load(tmp_path, kind, "plain torch"))
    plain = bench.core()
    core = EngineCore(bench.model, plain.kv, plain.drafter, cost_model=Timed())
    request = bench.request(0, Ask(PROMPTS[0], PARAMS, groups=own), latency_target=target, may_cut_groups=True)
    core.add(request)
    left = None if runs is None else max(runs, bench.units.least)
    whole = CHOSEN if own is None else own
    assert request.groups == left
    told = [f"{left} of {whole} experts to keep {1000 * target:g} ms (lossy)"]
    assert request.log.notes == (told if left is not None else [])
