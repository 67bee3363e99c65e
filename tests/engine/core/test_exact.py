"""Whatever drafts, and whatever runs beside it: the tokens of plain decoding alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_tools import Ask, Bench, OracleDraft, Setting, answer, cache_for, dense_probs
from exact_tools import (
    DENSE_DRAFTERS,
    EVERY,
    KINDS,
    NAMES,
    ORACLES,
    PROMPTS,
    SETTINGS,
    check,
    make_bench,
    mixed,
    params,
)
from pairs import pairwise

from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import BorrowedKV, OwnKV
from fastslow.draft.several import FallbackDrafter
from fastslow.engine.types import Floats, RequestView, Tree


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("models"), "dense")


class OddDraft(OracleDraft):
    """Knows the answers, and says so only after an odd number of tokens."""

    def _tree(self, request: RequestView, nodes: int) -> Tree:
        return super()._tree(request, nodes) if len(request.tokens) % 2 else Tree()


MODES = (None, 0, 1, 2)


@pytest.mark.parametrize(("kind", "drafter"), [*(("moge", d) for d in EVERY), *(("dense", d) for d in DENSE_DRAFTERS)])
def test_every_drafter_alone(request: pytest.FixtureRequest, kind: str, drafter: str) -> None:
    """Each mode once; prompts in turn, so that the drafters together meet each with each mode."""
    bench: Bench = request.getfixturevalue(kind)
    modes = MODES if kind == "moge" else (None,) * 3
    first = [*EVERY, *DENSE_DRAFTERS].index(drafter)
    asks = [Ask(PROMPTS[(first + n) % 3], params(), drafter, groups=groups) for n, groups in enumerate(modes)]
    assert len({tuple(answer(bench.alone(ask))) for ask in asks}) == len(asks)
    sums = [check(bench, [ask]) for ask in asks]
    drafted, accepted = (sum(s[name] for s in sums) for name in ("drafted", "accepted"))
    assert accepted > 0
    assert drafted > accepted or drafter == "told", "some drafts must be refused"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_named_drafter(request: pytest.FixtureRequest, kind: str, name: str) -> None:
    """Whatever joins the table of names is tested here."""
    bench: Bench = request.getfixturevalue(kind)
    rows = pairwise(PROMPTS[1:3], (None, 0) if kind == "moge" else (None,), (3, 8))
    assert check(bench, [Ask(p, params(), f"named {name}", nodes=n, groups=g) for p, g, n in rows])["drafted"] > 0


def test_all_named_drafters_beside_each_other(moge: Bench) -> None:
    wishes = (params(), params(repetition_penalty=1.3, max_tokens=17))
    asks = [
        Ask(PROMPTS[n % 5], wishes[n % 2], f"named {name}", groups=(None, 1, 0)[n % 3])
        for n, name in enumerate(2 * NAMES)
    ]
    sums = check(moge, asks, Setting(pages=26, prompt_rows=9), warm=True)
    assert 0 < sums["accepted"] < sums["drafted"] and sums["preempted"] > 0


@pytest.mark.parametrize("name", SETTINGS)
def test_a_mixed_batch(moge: Bench, name: str) -> None:
    setting, warm = SETTINGS[name]
    sums = check(moge, mixed(moge), setting, warm)
    assert 0 < sums["accepted"] < sums["drafted"]
    assert sums["cached"] > 0 or not warm
    assert sums["preempted"] > 0 or "few" not in name


def test_a_mixed_batch_in_bfloat16(tmp_path: Path) -> None:
    narrow = make_bench(tmp_path, "moge", "bfloat16")
    sums = check(narrow, mixed(narrow), *SETTINGS["few pages, prefix hit"])
    assert 0 < sums["accepted"] < sums["drafted"]


def test_seeded_samples_do_not_depend_on_the_neighbours(moge: Bench) -> None:
    hot = params(temperature=1.2, top_p=0.9)
    asks = [Ask(PROMPTS[n % 5], hot, groups=(None, 0, 2)[n % 3], seed=n) for n in range(6)]
    asks[1::3] = [Ask(PROMPTS[1], params(), "self0"), Ask(PROMPTS[2], hot, "model", seed=9)]
    for setting in (Setting(pages=24, prompt_rows=6), Setting(prompt_rows=6)):
        requests = moge.run(asks, setting)
        few = setting.pages < 100
        assert sum(r.spec_stats.preemptions for r in requests) > 0 or not few
        for ask, request in zip(asks, requests, strict=True):
            if ask.drafter == "off" or ask.params.temperature == 0:
                assert answer(request) == answer(moge.alone(ask))
            elif not few:  # samples depend on the drafts, which depend on the free pages
                assert answer(request) == answer(moge.run([ask])[0])


@pytest.mark.parametrize("drafter", ["erring", "forked", "self1"])
def test_logprobs_are_those_of_plain_decoding(moge: Bench, drafter: str) -> None:
    # a penalty, so that the target's own log-probabilities are not those that are sampled from
    asked = params(logprobs=3, prompt_logprobs=2, repetition_penalty=1.3)
    asks = [Ask(PROMPTS[n], asked, drafter, groups=(None, 2)[n % 2]) for n in range(4)]
    assert check(moge, asks, Setting(prompt_rows=5, pages=36))["accepted"] > 0
    for ask in asks:
        plain = moge.alone(ask)
        assert len(plain.log.prompt_logprobs) == len(ask.tokens) - 1
        assert all(token in t for token, t in zip(answer(plain), plain.log.logprobs, strict=True))


ENDS = ("id", "string", "late string", "late id", "length")


@pytest.mark.parametrize(("drafter", "at", "end"), pairwise(ORACLES, (2, 3, 5, 8, 12), ENDS))
def test_an_answer_ends_inside_an_accepted_run(moge: Bench, drafter: str, at: int, end: str) -> None:
    free = moge.alone(Ask(PROMPTS[1], params()))
    tokens, text = answer(free), free.stopper.text
    stops = {
        "id": params(stop_token_ids=[tokens[at]]), "string": params(stop=[text[at : at + 2]]),
        "late string": params(stop=[text[at : at + 2]], min_tokens=at + 3),
        "late id": params(stop_token_ids=[tokens[at]], min_tokens=at + 2), "length": params(max_tokens=at + 1),
    }  # fmt: skip
    assert check(moge, [Ask(PROMPTS[1], stops[end], drafter, nodes=9)])["accepted"] > 0
    ended = moge.alone(Ask(PROMPTS[1], stops["id"]))
    assert ended.stopper.reason == "stop" and ended.stopper.matched == tokens[at]


@pytest.mark.parametrize("kind", ["own", "borrowed"])
def test_a_draft_models_keys_follow_what_was_accepted(moge: Bench, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target drafts for itself and errs at known places only, so the steps can be counted.

    In between another drafter's runs are accepted, past what the model wrote before it erred.
    """

    def erring(logits_V: torch.Tensor, request: RequestView, drafted: Sequence[int]) -> Floats:
        right_V = dense_probs(logits_V, request, drafted)
        place = len(request.tokens) + len(drafted)
        return np.roll(right_V, 1) if place % 5 == 3 else right_V

    monkeypatch.setattr("fastslow.draft.model.chain.probs_at", erring)
    monkeypatch.setattr("fastslow.draft.model.draft.only_best", lambda request: False)
    model = moge.model
    asks = [Ask(prompt, params(max_tokens=30), kind) for prompt in PROMPTS]
    known = {n: moge.alone(ask).tokens for n, ask in enumerate(asks)}
    moge.drafters[kind] = lambda kv: FallbackDrafter(
        OddDraft(known), ModelDraft(model, OwnKV(cache_for(model)) if kind == "own" else BorrowedKV(kv))
    )
    check(moge, asks)
    for ask, request in zip(asks, moge.run(asks), strict=True):
        place, end, steps = len(ask.tokens), len(ask.tokens) + 30, 0
        while place < end:
            drafts = min(ask.nodes, end - 1 - place)
            run = next((i for i in range(drafts) if (place + i) % 5 == 3), drafts)
            if place % 2:
                run = drafts
            elif not steps and kind == "borrowed":
                run = 0  # the prompt is not read yet
            place += run + 1
            steps += 1
        assert request.spec_stats.steps == steps
