"""The engine with draft heads: the answers of plain decoding, and every drafter its own features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eagle_tools import exact_head, write_eagle
from engine_tools import PLENTY, Ask, Bench, Make, Setting, answer, finish, write_kin
from head_tools import View, check_sampled_answers, tiny_runner
from kernel_tools import wanted

from fastslow.draft.head.draft import MAX_WAITING, MIN_SCORE, HeadDraft
from fastslow.draft.head.runner import TorchRunner, load_head
from fastslow.draft.ngram import NgramDraft
from fastslow.draft.several import FallbackDrafter
from fastslow.engine.backends.loader import load_model
from fastslow.engine.params import SamplingParams, Speculation
from fastslow.engine.sampling.probs import only_best, probs_at
from fastslow.engine.types import AcceptResult, MarginalValue, RequestView

FIELDS: dict[str, Any] = {"vocab_size": 12, "num_hidden_layers": 2}
PROMPTS = [tuple(np.random.default_rng(n).integers(3, 12, n).tolist()) for n in (3, 21, 9, 14, 6)]
TORCH = ("chain", "tree", "ngram+chain", "other layers")
COMPILED = ("kernel chain", "kernel best chain", "kernel tree") if wanted() else ()
EAGLE = ("eagle chain", "speculators best chain", "narrow tree", "eagle torch tree")
KINDS = (*TORCH, *COMPILED, *EAGLE)
RUNNERS = ("torch", "kernels") if wanted() else ("torch",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kin(tmp_path_factory.mktemp("engine") / "target", routed=0.3, **FIELDS)


@pytest.fixture(scope="module")
def bench(folder: Path) -> Bench:
    head, other = tiny_runner(folder), tiny_runner(folder, layers=(1,))
    drafters: dict[str, Make] = {
        "chain": lambda kv: HeadDraft(head, probs_at),
        "tree": lambda kv: HeadDraft(head, probs_at, width=3, depth=3),
        "ngram+chain": lambda kv: FallbackDrafter(NgramDraft(2, 1), HeadDraft(head, probs_at)),
        "other layers": lambda kv: HeadDraft(other, probs_at, only_best=only_best),
    }
    published = load_head(write_eagle(folder.parent / "original", folder), folder)
    fields = {"norm_before_residual": True, "embedding": True}
    speculators = write_eagle(folder.parent / "speculators", folder, "speculators", **fields)
    other_layout = load_head(speculators, folder)
    narrow = load_head(write_eagle(folder.parent / "narrow", folder, draft=3, seed=1), folder)
    plain = TorchRunner(exact_head(folder.parent / "original", folder))
    drafters |= {
        "eagle chain": lambda kv: HeadDraft(published, probs_at),
        "speculators best chain": lambda kv: HeadDraft(other_layout, probs_at, only_best=only_best),
        "narrow tree": lambda kv: HeadDraft(narrow, probs_at, width=3, depth=3),
        "eagle torch tree": lambda kv: HeadDraft(plain, probs_at, width=3, depth=3),
    }
    if COMPILED:
        fast = tiny_runner(folder, "kernels")
        drafters |= {
            "kernel chain": lambda kv: HeadDraft(fast, probs_at),
            "kernel best chain": lambda kv: HeadDraft(fast, probs_at, only_best=only_best),
            "kernel tree": lambda kv: HeadDraft(fast, probs_at, width=3, depth=3),
        }
    return Bench(load_model(folder, "float32", "cpu", progress=False), drafters)


def asks(kind: str | None = None, **params: Any) -> list[Ask]:
    mixed = (*(COMPILED[1:] or TORCH[:2]), "chain", "off", "narrow tree")
    kinds = mixed if kind is None else [kind] * len(PROMPTS)
    settings = {"max_tokens": 20, "ignore_eos": True, **params}
    return [
        Ask(prompt, SamplingParams(**settings), name, seed=n)
        for n, (prompt, name) in enumerate(zip(PROMPTS, kinds))
    ]


EVERY_SETTING = [
    PLENTY,
    Setting(prompt_rows=5),
    Setting(pages=22, max_running=4),
    Setting(max_running=1),
]


@pytest.mark.parametrize(
    ("kind", "setting"),
    [*((kind, PLENTY) for kind in KINDS), *((None, setting) for setting in EVERY_SETTING)],
    ids=str,
)
def test_greedy_answers_are_those_of_plain_decoding(
    bench: Bench, kind: str | None, setting: Setting
) -> None:
    wanted = asks(kind)
    requests = bench.run(wanted, setting, warm=wanted[:2])
    assert [answer(r) for r in requests] == [answer(bench.alone(ask)) for ask in wanted]
    drafted = [r.spec_stats.drafted for r, ask in zip(requests, wanted) if ask.drafter != "off"]
    assert all(drafted)


def test_drafts_are_accepted(bench: Bench) -> None:
    """Or else the tests above would say little."""
    for kind in KINDS:
        requests = bench.run(asks(kind, max_tokens=60))
        assert sum(r.spec_stats.accepted for r in requests) >= 5, kind


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        (kind, {"repetition_penalty": 1.3, "temperature": 0.7} if n % 2 else {})
        for n, kind in enumerate(k for k in KINDS if k.endswith("chain"))
    ],
    ids=str,
)
def test_a_seed_gives_one_answer_in_any_batch(
    bench: Bench, params: dict[str, Any], kind: str
) -> None:
    wanted = asks(kind, **{"temperature": 1.0, **params})
    batched = [answer(r) for r in bench.run(wanted)]
    assert batched == [answer(bench.run([ask])[0]) for ask in wanted]


@pytest.mark.parametrize("kind", ["tree", (*COMPILED, "chain")[0], "eagle chain", "narrow tree"])
def test_sampled_answers_have_the_targets_probabilities(
    bench: Bench, folder: Path, kind: str
) -> None:
    check_sampled_answers(bench, folder, kind, PROMPTS[4])


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("best", [None, only_best], ids=["probs", "best"])
def test_chosen_chains_say_how_sure_they_are(
    folder: Path, runner: str, best: Callable[[RequestView], bool] | None
) -> None:
    drafter = HeadDraft(tiny_runner(folder, runner), probs_at, only_best=best)
    view = View(7, list(PROMPTS[1]))
    features = torch.randn(1, 2 * drafter._runner.config.hidden)
    drafter.commit([view], AcceptResult([[]], [[view.tokens[-1]]]), features)
    tree = drafter.propose([view], [3])[0]
    drafter.propose([view], [1])
    logits = torch.from_numpy(drafter._runner.logits(drafter._states[7].text))
    assert tree.scores is not None and tree.probs is None
    assert tree.scores[0] == pytest.approx(float(torch.softmax(logits, -1).max()), rel=1e-4)
    assert 1 > tree.scores[0] > tree.scores[1] > tree.scores[2] > 0
    view.params = SamplingParams(temperature=1.0)
    sampled = drafter.propose([view], [3])[0]
    assert sampled.scores is None and sampled.probs is not None


@pytest.mark.parametrize("runner", RUNNERS)
def test_where_the_length_is_free_unlikely_paths_are_left_out(folder: Path, runner: str) -> None:
    drafter = HeadDraft(tiny_runner(folder, runner), probs_at, width=3, depth=5)
    view = View(7, list(PROMPTS[1]))
    features = torch.randn(
        1, 2 * drafter._runner.config.hidden, generator=torch.Generator().manual_seed(2)
    )
    drafter.commit([view], AcceptResult([[]], [[view.tokens[-1]]]), features)
    fixed = drafter.propose([view], [12])[0]
    view.speculation = Speculation()
    free = drafter.propose([view], [12])[0]
    assert fixed.scores is not None and free.scores is not None
    assert min(fixed.scores) < MIN_SCORE <= min(free.scores)
    assert sorted(free.scores) == pytest.approx(sorted(x for x in fixed.scores if x >= MIN_SCORE))
    dear = sorted(fixed.scores)[-2]  # what a row takes: less likely nodes would be cut
    drafter._marginal_value = lambda batch: MarginalValue(2.0, 2.0 * dear * 0.999)
    paying = drafter.propose([view], [12])[0].scores
    assert paying == pytest.approx([x for x in fixed.scores if x >= dear])
    assert paying is not None and len(paying) < len(free.scores)
    view.speculation = Speculation(nodes=12)
    assert drafter.propose([view], [12])[0].scores == pytest.approx(fixed.scores)


class Watch(HeadDraft):
    """Keeps what it was told."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.told: dict[int, list[torch.Tensor]] = {}

    def commit(
        self, batch: Sequence[RequestView], result: AcceptResult, features: torch.Tensor | None
    ) -> None:
        assert features is not None and len(features) == sum(
            len(p) + 1 for p in result.accepted_nodes
        )
        parts = features.split([len(path) + 1 for path in result.accepted_nodes])
        for request, part in zip(batch, parts):
            self.told.setdefault(request.id, []).append(part)
        super().commit(batch, result, features)


def test_each_drafter_is_told_its_own_rows_and_layers(bench: Bench, folder: Path) -> None:
    one = Watch(tiny_runner(folder, RUNNERS[-1]), probs_at)
    two = Watch(tiny_runner(folder, layers=(1,)), probs_at)
    own = Bench(bench.model, {"chain": lambda kv: one, "tree": lambda kv: two})
    wanted = [Ask(p, drafter=d) for p, d in zip(PROMPTS, ("chain", "off", "tree", "chain", "off"))]
    core = own.core()
    requests = [own.request(n, ask) for n, ask in enumerate(wanted)]
    finish(core, requests)
    assert set(one.told) == {0, 3} and set(two.told) == {2}
    for watch, layers in ((one, (0, 1)), (two, (1,))):
        for number, parts in watch.told.items():
            tokens = requests[number].tokens[:-1]
            seen = torch.cat(parts)
            assert torch.allclose(seen, _features(own, tokens, layers)[-len(seen) :], atol=1e-5)
    assert not one._states and not two._states, "released"


def _features(bench: Bench, tokens: list[int], layers: tuple[int, ...]) -> torch.Tensor:
    from fastslow.tools.forward import forward_texts

    out = forward_texts(bench.model, [tokens], layers)
    assert out.features is not None
    return out.features


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_gap_only_costs_acceptance(folder: Path, runner: str) -> None:
    """Rows that were never shown leave the context and its positions right."""
    drafter = HeadDraft(tiny_runner(folder, runner), probs_at)
    view = View(7, list(PROMPTS[1]))
    width = 2 * drafter._runner.config.hidden
    drafter.commit([view], AcceptResult([[]], [[view.tokens[-1]]]), torch.randn(1, width))
    assert drafter._states[7].position == len(view.tokens) - 2
    assert len(drafter.propose([view], [3])[0].tokens) == 3
    view.tokens += [5, 6, 7, 8]
    drafter.commit([view], AcceptResult([[]], [[8]]), torch.randn(1, width))
    assert drafter._states[7].position == len(view.tokens) - 2
    assert len(drafter.propose([view], [3])[0].tokens) == 3
    assert drafter._states[7].position == len(view.tokens) - 1
    drafter.commit([view], AcceptResult([[]], [[]]), torch.randn(1, width))
    drafter.release([7, 9])
    assert not drafter._states


@pytest.mark.parametrize("runner", RUNNERS)
def test_rows_that_nobody_drafts_from_do_not_pile_up(folder: Path, runner: str) -> None:
    drafter = HeadDraft(tiny_runner(folder, runner), probs_at)
    view = View(7, list(PROMPTS[1]))
    for _ in range(3 * MAX_WAITING):
        view.tokens.append(5)
        drafter.commit(
            [view], AcceptResult([[]], [[5]]), torch.randn(1, 2 * drafter._runner.config.hidden)
        )
        assert len(drafter._states[7].after) <= MAX_WAITING
    assert len(drafter.propose([view], [3])[0].tokens) == 3
