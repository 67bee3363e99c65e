"""A tiny model with every drafter, and the law of its answers, for tests of sampled answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_tools import (
    Bench,
    Make,
    RandomDraft,
    SampledDraft,
    cache_for,
    dense_probs,
    write_kin,
)
from reference_model import ReferenceModel
from spellings import Pieces, letters, renumbered

from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import BorrowedKV, OwnKV
from fastslow.draft.model.retokenized import RetokenizedDraft
from fastslow.draft.model.vocab import ByteVocab, SharedTokens
from fastslow.draft.ngram import NgramDraft
from fastslow.draft.several import FallbackDrafter
from fastslow.engine.backends.loader import load_model
from fastslow.engine.params import SamplingParams
from fastslow.engine.types import Floats

VOCAB = 12
EOS = 2
PROMPT = (5, 6, 7, 5, 8, 6)
LENGTH = 3  # tokens looked at; the answers are longer, so that drafts are deep
RUNS = 400
MANY = {
    "ngram": 2000,
    "penalties": 800,
    "penalties, sampled": 800,
}  # finds draws that are not independent of each other
FIELDS: dict[str, Any] = {"vocab_size": VOCAB, "num_hidden_layers": 1, "eos_token_id": EOS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kin(tmp_path_factory.mktemp("probs") / "target", routed=0.5, **FIELDS)


@pytest.fixture(scope="module")
def bench(folder: Path) -> Bench:
    model = load_model(folder, "float32", "cpu", progress=False)
    kin = write_kin(folder.parent / "kin", jitter=0.15, routed=0.5, **FIELDS)
    small = load_model(kin, "float32", "cpu", progress=False)
    spoken = [4, 11, 2, 5, 9, 6, 0, 3, 8, 7, 10]  # all but one, in another order
    stranger = load_model(
        renumbered(folder.parent / "stranger", kin, spoken), "float32", "cpu", progress=False
    )
    ours = Pieces(letters(VOCAB))
    theirs = Pieces([ours.pieces[x] for x in spoken])

    def own() -> OwnKV:
        return OwnKV(cache_for(stranger, 1024))

    def common() -> SharedTokens:
        return SharedTokens(ByteVocab(ours), ByteVocab(theirs), VOCAB)

    drafters: dict[str, Make] = {
        "ngram": lambda kv: NgramDraft(longest=2, shortest=1),
        "model": lambda kv: ModelDraft(small, OwnKV(cache_for(small, 1024)), dense_probs),
        "self": lambda kv: ModelDraft(model, BorrowedKV(kv), dense_probs, 0),
        "common": lambda kv: ModelDraft(stranger, own(), dense_probs, width=3, vocab_map=common()),
        "retold": lambda kv: RetokenizedDraft(stranger, own(), ours, theirs),
        "chosen tree": lambda kv: RandomDraft(),
        "sampled tree": lambda kv: SampledDraft(_q, width=2),
        "ngram+self": lambda kv: FallbackDrafter(
            NgramDraft(), ModelDraft(model, BorrowedKV(kv), dense_probs, 1)
        ),
    }
    return Bench(model, drafters)


@cache
def _row(last: int) -> Floats:
    p_V = np.exp(np.random.default_rng(last).normal(size=VOCAB))
    law_V: Floats = (p_V / p_V.sum()).astype(np.float32)
    return law_V


def _q(text: Sequence[int]) -> Floats:
    return _row(text[-1])


@pytest.fixture(scope="module")
def logits(folder: Path) -> Callable[[tuple[int, ...], int | None], list[float]]:
    """The independent model's logits after PROMPT and an answer's beginning."""
    plain = ReferenceModel(folder)

    @cache
    def after(begun: tuple[int, ...], groups: int | None) -> list[float]:
        values: list[float] = plain.logits([*PROMPT, *begun], groups)[-1].tolist()
        return values

    return after


def params(**fields: Any) -> SamplingParams:
    shape: dict[str, Any] = {"max_tokens": LENGTH + 2, "temperature": 1.0, "ignore_eos": True}
    return SamplingParams(**{**shape, **fields})
