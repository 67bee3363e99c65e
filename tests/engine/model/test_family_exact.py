"""Every family in the engine: whatever drafts, and however its keys came about, the tokens of plain decoding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pangu_v2_tools
import pytest
import torch
from checkpoints import FAMILIES, tensors, write
from engine_tools import PLENTY, Ask, Bench, Make, RandomDraft, Setting, answer, cache_for
from family_tools import KERNELS, load
from pairs import pairwise
from pangu_v2_tools import MOE

from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import BorrowedKV, OwnKV
from fastslow.draft.ngram import NgramDraft
from fastslow.engine.params import SamplingParams
from fastslow.engine.sampling.probs import only_best, probs_at

VOCAB = 24
FIELDS: dict[str, Any] = {"vocab_size": VOCAB, "num_hidden_layers": 3, "intermediate_size": 32}
PROMPTS = [tuple(np.random.default_rng(n).integers(3, VOCAB, n).tolist()) for n in (3, 21, 9, 14)]
FEW = Setting(prompt_rows=5, pages=26)
QUICK = ("qwen2", "gpt_oss", "pangu_v2")  # the others wait for the slow tests
BENCHES = [(family, kernels) for family in (*FAMILIES, "pangu_v2") for kernels in KERNELS]
FIRST, SECOND = ("ngram", "random", "skip", "kin"), ("tree", "fewer", "kin", "skip")
CASES = [
    pytest.param(*case, marks=() if case[0][0] in QUICK else pytest.mark.slow, id=str(case))
    for case in pairwise(BENCHES, (FIRST, SECOND), ("plenty", "few pages, chunks, prefix hits"))
]


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    family, kernels = request.param
    second, folder = family == "pangu_v2", tmp_path_factory.mktemp(family)
    config = {**(MOE if second else FAMILIES[family]), **FIELDS}
    if family == "qwen2":
        config["max_window_layers"] = 1
    table = (pangu_v2_tools.tensors if second else tensors)(config)
    random = torch.Generator().manual_seed(1)
    near = {  # mostly it says the same
        name: weight + 0.03 * weight.abs().mean() * torch.randn(weight.shape, generator=random)
        for name, weight in table.items()
    }
    model = load(write(folder / "own", config, table), kernels)
    kin = load(write(folder / "kin", config, near), kernels)

    def fewer(kv: Any) -> ModelDraft:
        """The model itself with one expert, on its own keys."""
        return ModelDraft(model, BorrowedKV(kv), probs_at, 1 if model.config.routed else None)

    def of_kin(width: int) -> ModelDraft:
        best = only_best if width == 1 else None
        return ModelDraft(kin, OwnKV(cache_for(kin)), probs_at, only_best=best, width=width)

    drafters: dict[str, Make] = {
        "ngram": lambda kv: NgramDraft(2, 1),
        "random": lambda kv: RandomDraft(),
        "skip": lambda kv: ModelDraft(model.layer_subset([0, 2]), BorrowedKV(kv), probs_at),
        "kin": lambda kv: of_kin(1),
        "tree": lambda kv: of_kin(3),
        "fewer": fewer,
    }
    return Bench(model, drafters)


def asks(bench: Bench, kinds: tuple[str, ...], **params: Any) -> list[Ask]:
    counts = (None, 2, 1, None) if bench.model.config.routed else (None,) * 4
    settings = {"max_tokens": 16, "ignore_eos": True, **params}
    return [
        Ask(prompt, SamplingParams(**settings), kind, groups=count, seed=n)
        for n, (prompt, kind, count) in enumerate(zip(PROMPTS, kinds, counts, strict=True))
    ]


def check(bench: Bench, wanted: list[Ask], setting: Setting, warm: bool) -> None:
    requests = bench.run(wanted, setting, [ask.plain for ask in wanted] if warm else ())
    assert [answer(r) for r in requests] == [answer(bench.alone(ask)) for ask in wanted]
    assert sum(r.spec_stats.accepted for r in requests) > 0
    drafted = {ask.drafter for ask, r in zip(wanted, requests) if r.spec_stats.drafted}
    assert drafted == {ask.drafter for ask in wanted}
    assert sum(r.spec_stats.cached for r in requests) > 0 or not warm


@pytest.mark.parametrize(("bench", "kinds", "setting"), CASES, indirect=["bench"])
def test_greedy_answers_are_those_of_plain_decoding(bench: Bench, kinds: tuple[str, ...], setting: str) -> None:
    warm = setting != "plenty"
    check(bench, asks(bench, kinds), FEW if warm else PLENTY, warm)
