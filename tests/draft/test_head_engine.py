"""The engine with draft heads: the answers of plain decoding, and the target's probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from eagle_tools import plain_head, write_eagle
from engine_tools import Ask, Bench, Make, Setting, answer
from head_tools import PROMPTS, RUNNERS, View, check_sampled_answers, tiny_runner

from fastslow.draft.head.draft import HeadDraft
from fastslow.draft.head.growing import CHAINS, MIN_SCORE, Growth
from fastslow.draft.head.runner import HeadRunner, TorchRunner, load_head
from fastslow.draft.ngram import NgramDraft
from fastslow.draft.several import AdaptiveDrafter, FallbackDrafter
from fastslow.draft.suffix.draft import SuffixDraft
from fastslow.engine.backends.loader import load_model
from fastslow.engine.params import SamplingParams, Speculation
from fastslow.engine.types import AcceptResult, MarginalValue, RequestView, Tree
from fastslow.policies.speculation.selection import AdaptiveSelection

HEADS = tuple(f"{runner} {way}" for runner in RUNNERS for way in ("chain", "tree"))
JOINED = tuple(f"{RUNNERS[-1]} {way}" for way in ("ngram+", "ngram|", "suffix|"))
TIGHT = Setting(pages=32, max_running=4, prompt_rows=7)
EAGLE = ("eagle chain", "speculators chain", "narrow tree", "eagle torch tree")
KINDS = (*HEADS, *JOINED, *EAGLE, "blind tree", "other layers")


class AskAll(AdaptiveSelection):
    """Asks every drafter in every step."""

    def _asked(self, drafter: int, requests: Any, nodes: Sequence[int], value: Any) -> list[int]:
        return list(nodes)


class Both(AdaptiveDrafter):
    """Counts the trees that hold nodes of both drafters."""

    merged = 0

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        trees = super().propose(batch, nodes)
        Both.merged += sum(bool(set(tree.drafter_ids or ()) - {1, 2}) for tree in trees)
        return trees


def head(runner: HeadRunner, growth: Growth = CHAINS) -> Make:
    return lambda kv: HeadDraft(runner, growth)


@pytest.fixture(scope="module")
def bench(target: Path) -> Bench:
    tree = Growth(3, depth=3)
    drafters: dict[str, Make] = {}
    for name in RUNNERS:
        own = tiny_runner(target, name, prompt=16)
        drafters[f"{name} chain"] = head(own)
        drafters[f"{name} tree"] = head(own, tree)
    drafters[JOINED[0]] = lambda kv: FallbackDrafter(NgramDraft(2, 1), HeadDraft(own))
    drafters[JOINED[1]] = lambda kv: AdaptiveDrafter([NgramDraft(2, 1), HeadDraft(own)], AdaptiveSelection(2))
    drafters[JOINED[2]] = lambda kv: Both([SuffixDraft(min_score=0.0), HeadDraft(own, tree)], AskAll(2))
    original = write_eagle(target.parent / "original", target)
    fields = {"norm_before_residual": True, "embedding": True}
    speculators = write_eagle(target.parent / "speculators", target, "speculators", **fields)
    narrow = write_eagle(target.parent / "narrow", target, draft=3, seed=1)
    drafters |= {
        "eagle chain": head(load_head(original, target)),
        "speculators chain": head(load_head(speculators, target)),
        "narrow tree": head(load_head(narrow, target), tree),
        "eagle torch tree": head(TorchRunner(plain_head(original, target)), tree),
        "blind tree": head(tiny_runner(target), tree),
        "other layers": head(tiny_runner(target, "torch", (1,), prompt=5)),
    }
    return Bench(load_model(target, "float32", "cpu", progress=False), drafters)


def asks(kinds: Sequence[str], rule: str = "token", **params: Any) -> list[Ask]:
    settings = {"max_tokens": 24, "ignore_eos": True, **params}
    return [
        Ask(PROMPTS[n % len(PROMPTS)], SamplingParams(**settings), kind, seed=n, rule=rule)
        for n, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize("setting", [Setting(), TIGHT], ids=str)
def test_every_kind_answers_in_one_batch_as_plain_decoding_does(bench: Bench, setting: Setting) -> None:
    some = asks((*KINDS, "off"), max_tokens=30)
    before = Both.merged
    requests = bench.run(some, setting, warm=some[:4] if setting is TIGHT else ())
    assert [answer(r) for r in requests] == [answer(bench.alone(ask)) for ask in some]
    assert all(r.spec_stats.drafted for r in requests[:-1]) and Both.merged > before
    assert sum(r.spec_stats.accepted > 0 for r in requests) > 0.8 * len(KINDS), "it says little"
    assert setting is not TIGHT or any(r.spec_stats.preemptions for r in requests)


@pytest.mark.drafts(100, 8, nodes=None)
@pytest.mark.parametrize("setting", [Setting(prompt_rows=5), Setting(max_running=1)], ids=str)
def test_reproducible_answers_are_those_of_plain_decoding(bench: Bench, setting: Setting) -> None:
    kinds = (JOINED[2], HEADS[-1], "off", "narrow tree", JOINED[2])
    some = asks(kinds, "reproducible", temperature=1.0, max_tokens=12)
    requests = bench.run(some, setting, warm=some[:3])
    assert [answer(r) for r in requests] == [answer(bench.alone(ask)) for ask in some]


@pytest.mark.parametrize(
    "kind",
    [
        HEADS[-3],  # a chain
        "blind tree",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("eagle chain", "narrow tree")),
    ],
)
def test_sampled_answers_have_the_targets_probabilities(bench: Bench, target: Path, kind: str) -> None:
    check_sampled_answers(bench, target, kind, PROMPTS[4])


def begun(target: Path, runner: str, growth: Growth = CHAINS) -> tuple[HeadDraft, View]:
    """A drafter that was shown a row of a text."""
    drafter = HeadDraft(tiny_runner(target, runner), growth)
    view = View(7, list(PROMPTS[1]))
    drafter.commit([view], AcceptResult([[]], [[view.tokens[-1]]]), row(drafter))
    return drafter, view


def row(drafter: HeadDraft) -> torch.Tensor:
    return torch.randn(1, 2 * drafter._runner.config.hidden, generator=torch.manual_seed(2))


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("bias", [None, {0: 0.0}], ids=["best", "probs"])
def test_chosen_chains_say_how_sure_they_are(target: Path, runner: str, bias: dict[int, float] | None) -> None:
    drafter, view = begun(target, runner)
    view.params = SamplingParams(temperature=0.0, logit_bias=bias)
    tree = drafter.propose([view], [3])[0]
    drafter.propose([view], [1])
    logits = torch.from_numpy(drafter._runner.logits(drafter._states[7].text))
    assert tree.scores is not None and tree.probs is None
    assert tree.scores[0] == pytest.approx(float(torch.softmax(logits, -1).max()), rel=1e-4)
    assert 1 > tree.scores[0] > tree.scores[1] > tree.scores[2] > 0
    view.params = SamplingParams(temperature=1.0)
    sampled = drafter.propose([view], [3])[0]
    assert sampled.scores is None and sampled.probs is not None


def above(tree: Tree, least: float) -> list[float]:
    """The scores of nodes of at least this, whose parents are likely enough to get children."""
    bar = min(2 * least, least**0.5)
    scores = tree.scores or ()
    parents = (1.0 if p < 0 else scores[p] for p in tree.parents)
    return [own for own, before in zip(scores, parents) if own >= least and before >= bar]


@pytest.mark.parametrize("runner", RUNNERS)
def test_where_the_length_is_free_unlikely_paths_are_left_out(target: Path, runner: str) -> None:
    drafter, view = begun(target, runner, Growth(3, depth=5))
    fixed = drafter.propose([view], [20])[0]
    view.speculation = Speculation()
    free = drafter.propose([view], [20])[0]
    assert fixed.scores is not None and free.scores is not None
    assert min(fixed.scores) < MIN_SCORE <= min(free.scores)
    assert sorted(free.scores) == pytest.approx(sorted(above(fixed, MIN_SCORE)))
    dear = sorted(fixed.scores)[-2]  # what a row takes: less likely nodes would be cut
    drafter._marginal_value = lambda batch: MarginalValue(2.0, 2.0 * dear * 0.999)
    paying = drafter.propose([view], [20])[0].scores
    assert paying == pytest.approx(above(fixed, dear))
    assert paying is not None and len(paying) < len(free.scores)
    view.speculation = Speculation(nodes=12)
    assert drafter.propose([view], [20])[0].scores == pytest.approx(fixed.scores)
