"""openPangu Pro MoE V2 in the engine: whatever drafts, the tokens of plain decoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import DENSE, MOGE, write
from engine_tools import (
    PLENTY,
    Ask,
    Bench,
    RandomDraft,
    Setting,
    answer,
    cache_for,
    write_kin,
)
from extra_tools import MOE, tensors, write_moe
from laws import chi_square_fits, plain_law, sampled_text_law
from extra_tools import ReferenceMoe

from fastslow import LLM, Mode, SamplingParams
from fastslow.draft.head.draft import HeadDraft
from fastslow.draft.head.mtp import MtpHead, load_mtp
from fastslow.draft.model import BorrowedKV, ModelDraft, OwnKV
from fastslow.draft.ngram import NgramDraft
from fastslow.engine.model.loader import load_model
from fastslow.engine.sampling import decide, only_best

VOCAB = 24
FIELDS: dict[str, Any] = {"vocab_size": VOCAB, "num_hidden_layers": 2}
PROMPTS = [tuple(np.random.default_rng(n).integers(3, VOCAB, n).tolist()) for n in (3, 21, 9, 14)]
DRAFTERS = ("ngram", "random", "skip", "kin", "mtp", "mtp tree")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_moe(tmp_path_factory.mktemp("moe") / "target", **FIELDS)


@pytest.fixture(scope="module")
def bench(folder: Path) -> Bench:
    config = {**MOE, **FIELDS}
    noise = torch.Generator().manual_seed(1)
    near = {
        name: t + 0.05 * t.std() * torch.randn(t.shape, generator=noise) if t.numel() > 1 else t
        for name, t in tensors(config).items()
    }
    kin = load_model(write(folder.parent / "kin", config, near), "float32")
    model = load_model(folder, "float32", "cpu", progress=False)
    head = _useful(load_mtp(folder, torch.float32))
    return Bench(
        model,
        {
            "ngram": lambda kv: NgramDraft(2, 1),
            "random": lambda kv: RandomDraft(),
            "skip": lambda kv: ModelDraft(model.keep([0]), BorrowedKV(kv), decide),
            "kin": lambda kv: ModelDraft(kin, OwnKV(cache_for(kin)), decide, only_best=only_best),
            "mtp": lambda kv: HeadDraft(head, decide),
            "mtp tree": lambda kv: HeadDraft(head, decide, width=3, depth=3),
        },
    )


def _useful(head: MtpHead) -> MtpHead:
    return head


def asks(kind: str | None = None, **params: Any) -> list[Ask]:
    kinds = (*DRAFTERS, "off")[: len(PROMPTS)] if kind is None else [kind] * len(PROMPTS)
    settings = {"max_tokens": 24, "ignore_eos": True, **params}
    return [
        Ask(prompt, SamplingParams(**settings), name, seed=n)
        for n, (prompt, name) in enumerate(zip(PROMPTS, kinds))
    ]


@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize(
    ("setting", "warm"),
    [(PLENTY, False), (Setting(prompt_rows=5, pages=26), True)],
    ids=["plenty", "few pages, chunks, prefix hits"],
)
def test_greedy_answers_are_those_of_plain_decoding(
    bench: Bench, kind: str, setting: Setting, warm: bool
) -> None:
    wanted = asks(kind)
    requests = bench.run(wanted, setting, [a.plain for a in wanted] if warm else ())
    assert [answer(r) for r in requests] == [answer(bench.alone(ask)) for ask in wanted]
    assert all(r.tally.drafted for r in requests) or kind == "ngram"
    assert sum(r.tally.accepted for r in requests) > 0
    assert sum(r.tally.cached for r in requests) > 0 or not warm
