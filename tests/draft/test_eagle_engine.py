"""The engine with published heads: the answers of plain decoding, and the target's probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eagle_tools import exact_head, write_eagle
from engine_tools import PLENTY, Ask, Bench, Make, Setting, answer, write_kin
from head_tools import check_sampled_answers

from fastslow.draft.head.draft import HeadDraft
from fastslow.draft.head.runner import TorchRunner, load_head
from fastslow.engine.backends.loader import load_model
from fastslow.engine.params import SamplingParams
from fastslow.engine.sampling.probs import only_best, probs_at

FIELDS: dict[str, Any] = {"vocab_size": 12, "num_hidden_layers": 2}
PROMPTS = [tuple(np.random.default_rng(n).integers(3, 12, n).tolist()) for n in (3, 21, 9, 14, 6)]
KINDS = ("original chain", "original best chain", "speculators tree", "narrow tree", "torch tree")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kin(tmp_path_factory.mktemp("engine") / "target", routed=0.3, **FIELDS)


@pytest.fixture(scope="module")
def bench(folder: Path) -> Bench:
    def runner(name: str, **fields: Any) -> Any:
        return load_head(write_eagle(folder.parent / name, folder, **fields), folder)

    original = runner("original")
    other = runner("speculators", layout="speculators", norm_before_residual=True, embedding=True)
    narrow = runner("narrow", draft=3, seed=1)
    plain = TorchRunner(exact_head(folder.parent / "original", folder))
    drafters: dict[str, Make] = {
        "original chain": lambda kv: HeadDraft(original, probs_at),
        "original best chain": lambda kv: HeadDraft(original, probs_at, only_best=only_best),
        "speculators tree": lambda kv: HeadDraft(other, probs_at, width=3, depth=3),
        "narrow tree": lambda kv: HeadDraft(narrow, probs_at, width=3, depth=3),
        "torch tree": lambda kv: HeadDraft(plain, probs_at, width=3, depth=3),
    }
    return Bench(load_model(folder, "float32", "cpu", progress=False), drafters)


def asks(kind: str | None = None, **params: Any) -> list[Ask]:
    kinds = (*KINDS[:4], "off") if kind is None else [kind] * len(PROMPTS)
    settings = {"max_tokens": 20, "ignore_eos": True, **params}
    return [
        Ask(prompt, SamplingParams(**settings), name, seed=n)
        for n, (prompt, name) in enumerate(zip(PROMPTS, kinds))
    ]


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        *((kind, PLENTY) for kind in KINDS),
        (None, PLENTY),
        (None, Setting(prompt_rows=5)),
        (None, Setting(pages=22, max_running=4)),
    ],
    ids=str,
)
def test_greedy_answers_are_those_of_plain_decoding(
    bench: Bench, kind: str | None, setting: Setting
) -> None:
    wanted = asks(kind)
    requests = bench.run(wanted, setting, warm=wanted[:2])
    assert [answer(r) for r in requests] == [answer(bench.alone(ask)) for ask in wanted]
    assert all(r.spec_stats.drafted for r, ask in zip(requests, wanted) if ask.drafter != "off")


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_are_accepted(bench: Bench, kind: str) -> None:
    """Or else the tests beside it would say little."""
    requests = bench.run(asks(kind, max_tokens=60))
    assert sum(r.spec_stats.accepted for r in requests) >= 5


@pytest.mark.parametrize("kind", ["original chain", "speculators tree", "narrow tree"])
def test_sampled_answers_have_the_targets_probabilities(
    bench: Bench, folder: Path, kind: str
) -> None:
    """Of all tokens, also of those that the head cannot draft."""
    check_sampled_answers(bench, folder, kind, PROMPTS[4])


def test_a_seed_gives_one_answer_in_any_batch(bench: Bench) -> None:
    wanted = asks("original chain", temperature=1.0)
    batched = [answer(r) for r in bench.run(wanted)]
    assert batched == [answer(bench.run([ask])[0]) for ask in wanted]
