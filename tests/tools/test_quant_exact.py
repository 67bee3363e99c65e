"""Whatever drafts, a W8A8 model with keys and values in int8 says what it says alone."""

from __future__ import annotations

import numpy as np
import pytest
from engine_tools import (
    Ask,
    Bench,
    OracleDraft,
    RandomDraft,
    Setting,
    answer,
    cache_for,
    write_kin,
)
from kernel_tools import compiled
from quant_tools import quantised

from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import BorrowedKV, OwnKV
from fastslow.draft.ngram import NgramDraft
from fastslow.draft.several import FallbackDrafter
from fastslow.engine.backends.cpu.kv import Int8Tiles
from fastslow.engine.backends.loader import load_model
from fastslow.engine.params import SamplingParams
from fastslow.engine.sampling.probs import only_best, probs_at

VOCAB = 320
PROMPTS = [tuple(np.random.default_rng(n).integers(5, VOCAB, n).tolist()) for n in (3, 21, 9, 14)]
SETTINGS = (Setting(), Setting(prompt_rows=5), Setting(pages=16, max_running=3))
pytestmark = compiled


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("w8a8")
    target = write_kin(folder / "float", routed=0.3, vocab_size=VOCAB)
    kin = write_kin(folder / "kin", jitter=0.04, routed=0.3, vocab_size=VOCAB)
    made = [quantised(path, folder / f"{path.name}-w8a8", kv=True) for path in (target, kin)]
    model, small = (load_model(path, quantization="auto") for path in made)
    assert model.storage is Int8Tiles and model.storage is small.storage
    shallow = model.layer_subset([0])

    def ngram() -> NgramDraft:
        return NgramDraft(longest=3, shortest=1)

    return Bench(
        model,
        {
            "ngram": lambda kv: ngram(),
            "model": lambda kv: ModelDraft(
                small, OwnKV(cache_for(small)), probs_at, only_best=only_best
            ),
            "tree": lambda kv: ModelDraft(small, OwnKV(cache_for(small)), probs_at, width=3),
            "skip": lambda kv: ModelDraft(shallow, BorrowedKV(kv), probs_at),
            "self": lambda kv: ModelDraft(model, BorrowedKV(kv), probs_at, 0),
            "self tree": lambda kv: ModelDraft(model, BorrowedKV(kv), probs_at, 1, width=2),
            "ngram+self": lambda kv: FallbackDrafter(
                ngram(), ModelDraft(model, BorrowedKV(kv), probs_at, 0)
            ),
            "random": lambda kv: RandomDraft(),
        },
    )


@pytest.mark.parametrize("setting", SETTINGS[:2])
def test_every_drafter_says_what_plain_decoding_says(bench: Bench, setting: Setting) -> None:
    """All in one batch, of unlike modes and lengths."""
    params, names = SamplingParams(max_tokens=16), list(bench.drafters)
    asks = [
        Ask(prompt, params, names[(n + shift) % len(names)], groups=(None, 2, 0)[n % 3], seed=n)
        for shift in range(0, len(names), 2)
        for n, prompt in enumerate(PROMPTS)
    ]
    assert {ask.drafter for ask in asks} == set(names)
    requests = bench.run(asks, setting)
    for ask, request in zip(asks, requests, strict=True):
        assert answer(request) == answer(bench.alone(ask)), ask.drafter
    assert sum(request.spec_stats.accepted for request in requests) > 20


def test_accepted_rows_that_move_keep_their_bits(bench: Bench) -> None:
    """Forked trees are accepted past their leaves, so that keys and values move; pages are few."""
    params = SamplingParams(max_tokens=24)
    asks = [Ask(prompt, params, "forked", seed=n) for n, prompt in enumerate(PROMPTS)]
    known = {n: bench.alone(ask).tokens for n, ask in enumerate(asks)}
    bench.drafters["forked"] = lambda kv: OracleDraft(known, lambda p: p % 7 == 0, forked=True)
    for setting in SETTINGS:
        requests = bench.run(asks, setting)
        for ask, request in zip(asks, requests, strict=True):
            assert answer(request) == answer(bench.alone(ask))
        assert sum(request.spec_stats.accepted for request in requests) > 20
