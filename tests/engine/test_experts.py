"""Experts per request in a mixture without groups: each row runs its own number, whatever runs beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engine_tools import PLENTY, Ask, Bench, RandomDraft, Setting, answer, finish
from pangu_v2_tools import write_moe

from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import BorrowedKV
from fastslow.draft.ngram import NgramDraft
from fastslow.engine.backends.loader import load_model
from fastslow.engine.core.engine_core import EngineCore
from fastslow.engine.core.latency_budget import RunEverything
from fastslow.engine.model.base import Model
from fastslow.engine.params import SamplingParams
from fastslow.engine.sampling.probs import only_best, probs_at

VOCAB, CHOSEN = 24, 4
COUNTS = (None, 0, 1, 3)
PROMPTS = [tuple(np.random.default_rng(n).integers(3, VOCAB, n).tolist()) for n in (9, 21, 14, 17)]
PARAMS = SamplingParams(max_tokens=24, ignore_eos=True)
DRAFTERS = ("ngram", "random", "none", "one", "one tree", "skip")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder: Path = tmp_path_factory.mktemp("experts")
    fields = {"vocab_size": VOCAB, "num_hidden_layers": 2, "num_mtp_layers": 0}
    write_moe(folder, num_experts_per_tok=CHOSEN, **fields)
    return load_model(folder, "float32", "cpu", progress=False)


@pytest.fixture(scope="module")
def bench(model: Model) -> Bench:
    few = {"only_best": only_best}
    return Bench(
        model,
        {
            "ngram": lambda kv: NgramDraft(2, 1),
            "random": lambda kv: RandomDraft(),
            "none": lambda kv: ModelDraft(model, BorrowedKV(kv), probs_at, 0, **few),
            "one": lambda kv: ModelDraft(model, BorrowedKV(kv), probs_at, 1, **few),
            "one tree": lambda kv: ModelDraft(model, BorrowedKV(kv), probs_at, 1, 3),
            "skip": lambda kv: ModelDraft(model.layer_subset([0]), BorrowedKV(kv), probs_at, 2),
        },
    )


def in_every_count(drafter: str) -> list[Ask]:
    """Each prompt with each number of experts, in one batch."""
    return [
        Ask(prompt, PARAMS, drafter, groups=count, seed=n)
        for n, prompt in enumerate(PROMPTS)
        for count in COUNTS
    ]


def test_counts_say_different_things(bench: Bench) -> None:
    """Or else the tests below prove nothing."""
    said = {tuple(answer(bench.alone(ask))) for ask in in_every_count("off")}
    assert len(said) == len(PROMPTS) * len(COUNTS)


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize(
    "setting",
    [PLENTY, Setting(prompt_rows=5, pages=20)],
    ids=["prefix hits", "chunks, few pages, preemption"],
)
def test_drafted_answers_are_those_of_plain_decoding(
    bench: Bench, drafter: str, setting: Setting
) -> None:
    asks = in_every_count(drafter)
    warm = [ask.plain for ask in asks if ask.groups != 1] if setting is PLENTY else []
    requests = bench.run(asks, setting, warm)
    assert [answer(r) for r in requests] == [answer(bench.alone(ask)) for ask in asks]
    assert sum(r.tally.accepted for r in requests) > 0
    if setting is PLENTY:
        cached = {count: 0 for count in COUNTS}
        for ask, request in zip(asks, requests, strict=True):
            cached[ask.groups] += request.tally.cached
        assert cached.pop(1) == 0 and all(cached.values()), "nobody ran one expert before"
    else:
        assert sum(r.tally.preemptions for r in requests) > 0


def test_pages_are_shared_by_requests_of_one_count_only(bench: Bench) -> None:
    core = bench.core()
    tokens = PROMPTS[1]
    for number, (count, found) in enumerate(((3, 0), (None, 0), (2, 0), (3, 20), (None, 20))):
        request = bench.request(number, Ask(tokens, PARAMS, groups=count))
        finish(core, [request])
        assert request.tally.cached == found, count
        assert answer(request) == answer(bench.alone(Ask(tokens, PARAMS, groups=count)))


class Timed(RunEverything):
    """A step takes a second for each expert of the request that runs most."""

    def __init__(self, all_experts: int) -> None:
        self._all = all_experts

    def seconds(self, groups: int | None, rows: int) -> float:
        return float(self._all if groups is None else groups)


@pytest.mark.parametrize(
    ("own", "target", "runs"),
    [(None, 9, None), (None, 3, 2), (None, 2, 1), (3, 2, 1), (None, 1, 0)],
)
def test_a_latency_target_leaves_out_experts(
    bench: Bench, own: int | None, target: float, runs: int | None
) -> None:
    plain = bench.core()
    core = EngineCore(bench.model, plain.kv, plain.drafter, cost_model=Timed(CHOSEN))
    ask = Ask(PROMPTS[0], PARAMS, groups=own)
    request = bench.request(0, ask, target=target, may_cut_groups=True)
    core.add(request)
    assert request.groups == runs
    whole = CHOSEN if own is None else own
    told = [f"{runs} of {whole} experts to keep {1000 * target:g} ms (lossy)"]
    assert request.notes == (told if runs is not None else [])
