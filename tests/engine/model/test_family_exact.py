"""Every family in the engine: whatever drafts, and however its keys came about, the tokens of plain decoding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import FAMILIES, random_tensors, write
from engine_tools import PLENTY, Ask, Bench, RandomDraft, Setting, answer, cache_for
from family_tools import KERNELS, load

from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import BorrowedKV, OwnKV
from fastslow.draft.ngram import NgramDraft
from fastslow.engine.params import SamplingParams
from fastslow.engine.sampling.probs import only_best, probs_at

VOCAB = 24
FIELDS: dict[str, Any] = {"vocab_size": VOCAB, "num_hidden_layers": 3, "intermediate_size": 32}
PROMPTS = [tuple(np.random.default_rng(n).integers(3, VOCAB, n).tolist()) for n in (3, 21, 9, 14)]
DRAFTERS = ("ngram", "random", "skip", "kin", "tree", "fewer")
FEW = Setting(prompt_rows=5, pages=26)


def near(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The model's weights, a little changed: mostly it says the same."""
    random = torch.Generator().manual_seed(1)
    return {
        name: weight + 0.03 * weight.std() * torch.randn(weight.shape, generator=random)
        for name, weight in random_tensors(config).items()
    }


QUICK = ("qwen2", "gpt_oss")  # the others wait for the slow tests
ALL = [
    pytest.param((name, kernels), marks=() if name in QUICK else pytest.mark.slow)
    for name in FAMILIES
    for kernels in KERNELS
]


@pytest.fixture(scope="module", params=ALL, ids=str)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    family, kernels = request.param
    config, folder = {**FAMILIES[family], **FIELDS}, tmp_path_factory.mktemp(family)
    if family == "qwen2":
        config["max_window_layers"] = 1
    model = load(write(folder / "own", config, random_tensors(config)), kernels)
    kin = load(write(folder / "kin", config, near(config)), kernels)

    def fewer(kv: Any) -> ModelDraft:
        """The model itself with one expert, on its own keys."""
        return ModelDraft(model, BorrowedKV(kv), probs_at, 1 if model.config.router else None)

    def of_kin(width: int) -> ModelDraft:
        best = only_best if width == 1 else None
        return ModelDraft(kin, OwnKV(cache_for(kin)), probs_at, only_best=best, width=width)

    return Bench(
        model,
        {
            "ngram": lambda kv: NgramDraft(2, 1),
            "random": lambda kv: RandomDraft(),
            "skip": lambda kv: ModelDraft(model.layer_subset([0, 2]), BorrowedKV(kv), probs_at),
            "kin": lambda kv: of_kin(1),
            "tree": lambda kv: of_kin(3),
            "fewer": fewer,
        },
    )


def asks(bench: Bench, kinds: tuple[str, ...], **params: Any) -> list[Ask]:
    counts = (None, 2, 1, None) if bench.model.config.router else (None,) * 4
    settings = {"max_tokens": 24, "ignore_eos": True, **params}
    return [
        Ask(prompt, SamplingParams(**settings), kind, groups=count, seed=n)
        for n, (prompt, kind, count) in enumerate(zip(PROMPTS, kinds, counts, strict=True))
    ]


def check(bench: Bench, wanted: list[Ask], setting: Setting, warm: bool) -> None:
    requests = bench.run(wanted, setting, [ask.plain for ask in wanted] if warm else ())
    assert [answer(r) for r in requests] == [answer(bench.alone(ask)) for ask in wanted]
    assert sum(r.spec_stats.accepted for r in requests) > 0
    assert sum(r.spec_stats.cached for r in requests) > 0 or not warm


@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize(
    ("setting", "warm"),
    [(PLENTY, False), (FEW, True)],
    ids=["plenty", "few pages, chunks, prefix hits"],
)
def test_greedy_answers_are_those_of_plain_decoding(
    bench: Bench, kind: str, setting: Setting, warm: bool
) -> None:
    check(bench, asks(bench, (kind,) * 4), setting, warm)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_mixed_drafters_in_one_batch(bench: Bench, temperature: float) -> None:
    """With a temperature, two runs of a seed are the same whatever runs beside."""
    kinds = ("kin", "tree", "random", "off")
    wanted = asks(bench, kinds, temperature=temperature)
    if not temperature:
        check(bench, wanted, FEW, warm=True)
        return
    together = [answer(r) for r in bench.run(wanted, FEW)]
    assert together == [answer(bench.run([ask])[0]) for ask in wanted]
