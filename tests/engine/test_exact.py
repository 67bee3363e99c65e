"""Whatever drafts, and whatever runs beside it: the tokens of plain decoding alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import DENSE
from engine_tools import (
    PLENTY,
    Ask,
    Bench,
    Make,
    OracleDraft,
    RandomDraft,
    SampledDraft,
    Setting,
    answer,
    cache_for,
    dense_probs,
    outcome,
    write_kin,
)
from head_tools import tiny_runner
from spellings import Pieces, letters, renumbered
from tokenizers_tiny import write_bpe

from fastslow.draft.build import DRAFTERS, DrafterDeps, LoadedModel, build_drafter
from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import BorrowedKV, OwnKV
from fastslow.draft.model.retokenized import RetokenizedDraft
from fastslow.draft.model.vocab import ByteVocab, SharedTokens
from fastslow.draft.ngram import NgramDraft
from fastslow.draft.several import FallbackDrafter
from fastslow.draft.suffix.sources import AnswerMemory
from fastslow.engine.backends.loader import load_model
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.base import Model
from fastslow.engine.params import SamplingParams, Speculation
from fastslow.engine.sampling.probs import only_best, probs_at
from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.engine.types import Drafter, Floats, RequestView, Tree
from fastslow.policies.speculation.selection import AdaptiveSelection

VOCAB = 320
ROUTED = 0.3
PROMPTS = [
    tuple(np.random.default_rng(n).integers(5, VOCAB, n).tolist()) for n in (3, 21, 9, 14, 6)
]
CHAINS = ("ngram", "model", "self0", "self1", "ngram+self", "skip", "common", "retold")
TREES = ("random", "sampled", "tree", "self tree")
SPOKEN = np.random.default_rng(0).permutation(VOCAB)[:310].tolist()  # by the foreign draft model
ORACLES = ("told", "erring", "forked")
DENSE_DRAFTERS = (
    *("ngram", "model", "ngram+model", "skip", "common", "retold", "random", "sampled", "tree"),
    *ORACLES,
)
KINDS = ("moge", "dense")
NAMES = (*DRAFTERS, "auto", "+".join(DRAFTERS), "|".join(DRAFTERS))  # all that can be asked for


def make_bench(
    folder: Path,
    kind: str,
    dtype: str = "float32",
    device: str = "cpu",
    load: Callable[..., Model] = load_model,
    **fields: Any,
) -> Bench:
    """Target and draft model are kin, so that they often agree. `load` loads the target."""
    base = DENSE if kind == "dense" else None
    fields = {"vocab_size": VOCAB, **fields}
    target = write_kin(folder / kind, base, routed=ROUTED, **fields)
    write_bpe(target, vocab_size=VOCAB)
    kin = write_kin(folder / f"{kind}-kin", base, 0.04, ROUTED, **fields)
    model = load(target, dtype=dtype, device=device, progress=False)
    small = load_model(kin, dtype, device, progress=False)

    foreign = renumbered(folder / f"{kind}-foreign", kin, SPOKEN)
    stranger = load_model(foreign, dtype, device, progress=False)
    words = letters(VOCAB)
    ours, theirs = Pieces(words), Pieces([words[x] for x in SPOKEN])
    shallow = model.layer_subset([0])
    head = tiny_runner(target)

    def common() -> SharedTokens:
        return SharedTokens(ByteVocab(ours), ByteVocab(theirs), VOCAB)

    def ngram() -> NgramDraft:
        return NgramDraft(longest=3, shortest=1)

    def own() -> OwnKV:
        return OwnKV(cache_for(small))

    def by_name(name: str) -> Make:
        def make(kv: KVCache) -> Drafter:
            deps = DrafterDeps(
                model,
                kv,
                load_model=lambda path: LoadedModel(small, cache_for(small)),
                load_head=lambda path: head,
                load_corpus=lambda path: pytest.fail("no corpus is asked for"),
                memory=AnswerMemory(),
                has_head=True,
                selection=lambda count, settings: AdaptiveSelection(count),
            )
            layers = None if kind == "moge" else (0,)
            return build_drafter(Speculation(drafter=name, model="small", layers=layers), deps)

        return make

    drafters: dict[str, Make] = {
        "ngram": lambda kv: ngram(),
        "model": lambda kv: ModelDraft(small, own(), probs_at, only_best=only_best),
        "random": lambda kv: RandomDraft(),
        "sampled": lambda kv: SampledDraft(_recent_probs, width=2),
        "ngram+model": lambda kv: FallbackDrafter(ngram(), ModelDraft(small, own(), dense_probs)),
        "tree": lambda kv: ModelDraft(small, own(), probs_at, width=3),
        "skip": lambda kv: ModelDraft(shallow, BorrowedKV(kv), probs_at),
        "retold": lambda kv: RetokenizedDraft(stranger, OwnKV(cache_for(stranger)), ours, theirs),
        "common": lambda kv: ModelDraft(
            stranger, OwnKV(cache_for(stranger)), probs_at, width=2, vocab_map=common()
        ),
    }
    drafters |= {f"named {name}": by_name(name) for name in NAMES}
    if kind == "moge":
        drafters |= {
            "self0": lambda kv: ModelDraft(model, BorrowedKV(kv), probs_at, 0),
            "self1": lambda kv: ModelDraft(model, BorrowedKV(kv), probs_at, 1),
            "self tree": lambda kv: ModelDraft(model, BorrowedKV(kv), probs_at, 1, width=2),
            "ngram+self": lambda kv: FallbackDrafter(
                ngram(), ModelDraft(model, BorrowedKV(kv), probs_at, 0)
            ),
        }
    return Bench(model, drafters, load_tokenizer(target))


def _recent_probs(text: Sequence[int]) -> Floats:
    law_V = np.full(VOCAB, 0.2 / VOCAB, dtype=np.float32)
    for token in text[-4:]:
        law_V[token] += 0.2
    result: Floats = law_V / law_V.sum()
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def moge(folder: Path) -> Bench:
    return make_bench(folder, "moge")


@pytest.fixture(scope="module")
def dense(folder: Path) -> Bench:
    return make_bench(folder, "dense")


@pytest.fixture(scope="module")
def narrow(folder: Path) -> Bench:
    return make_bench(folder / "narrow", "moge", "bfloat16")


class OddDraft(OracleDraft):
    """Knows the answers, and says so only after an odd number of tokens."""

    def _tree(self, request: RequestView, nodes: int) -> Tree:
        return super()._tree(request, nodes) if len(request.tokens) % 2 else Tree()


def tell(bench: Bench, asks: list[Ask]) -> None:
    """Oracles that know the plain answers of these asks, at these places in the batch."""
    known = {n: bench.alone(ask).tokens for n, ask in enumerate(asks)}
    bench.drafters |= {
        "told": lambda kv: OracleDraft(known),
        "erring": lambda kv: OracleDraft(known, lambda place: place % 5 == 3),
        "forked": lambda kv: OracleDraft(known, lambda place: place % 7 == 5, forked=True),
    }


def check(
    bench: Bench, asks: list[Ask], setting: Setting = PLENTY, warm: bool = False
) -> dict[str, int]:
    """Everything a caller sees equals the plain answer alone; returns what drafts came to."""
    tell(bench, asks)
    requests = bench.run(asks, setting, [ask.plain for ask in others(asks)] if warm else ())
    sums = {"drafted": 0, "accepted": 0, "preempted": 0, "cached": 0}
    for ask, request in zip(asks, requests, strict=True):
        assert outcome(request) == outcome(bench.alone(ask)), (ask, request.spec_stats)
        sums["drafted"] += request.spec_stats.drafted
        sums["accepted"] += request.spec_stats.accepted
        sums["preempted"] += request.spec_stats.preemptions
        sums["cached"] += request.spec_stats.cached
    return sums


def others(asks: list[Ask]) -> list[Ask]:
    """The same prompts in all modes, so that a prefix of the wrong mode could be found."""
    return [
        Ask(ask.tokens, SamplingParams(max_tokens=2), groups=groups)
        for groups in {ask.groups for ask in asks}
        for ask in asks
    ]


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 28, "ignore_eos": True, **fields})


@pytest.mark.parametrize("drafter", [*CHAINS, *TREES, *ORACLES])
def test_every_drafter_in_every_mode_alone(moge: Bench, drafter: str) -> None:
    drafted = accepted = 0
    answers = set()
    for groups in (None, 0, 1, 2):
        for prompt in PROMPTS[:3]:
            ask = Ask(prompt, params(), drafter, groups=groups)
            sums = check(moge, [ask])
            drafted += sums["drafted"]
            accepted += sums["accepted"]
            answers.add(tuple(answer(moge.alone(ask))))
    assert len(answers) == 12, "modes or prompts that say the same prove nothing"
    assert accepted > 0
    assert drafted > accepted or drafter == "told", "some drafts must be refused"


@pytest.mark.parametrize("drafter", DENSE_DRAFTERS)
def test_every_drafter_on_a_dense_model(dense: Bench, drafter: str) -> None:
    drafted = accepted = 0
    for prompt in PROMPTS[:4]:
        sums = check(dense, [Ask(prompt, params(max_tokens=40), drafter)])
        drafted += sums["drafted"]
        accepted += sums["accepted"]
    assert accepted > 0
    assert drafted > accepted or drafter == "told"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_named_drafter(request: pytest.FixtureRequest, kind: str, name: str) -> None:
    """Whatever joins the table of names is tested here."""
    bench: Bench = request.getfixturevalue(kind)
    drafted = 0
    for prompt in PROMPTS[:3]:
        for groups in (None, 0) if kind == "moge" else (None,):
            asks = [Ask(prompt, params(), f"named {name}", nodes=n, groups=groups) for n in (3, 8)]
            drafted += check(bench, asks)["drafted"]
    assert drafted > 0


def test_all_named_drafters_beside_each_other(moge: Bench) -> None:
    wishes = (params(), params(repetition_penalty=1.3, max_tokens=17))
    asks = [
        Ask(PROMPTS[n % 5], wishes[n % 2], f"named {name}", groups=(None, 1, 0)[n % 3])
        for n, name in enumerate(2 * NAMES)
    ]
    sums = check(moge, asks, Setting(pages=26, prompt_rows=9), warm=True)
    assert 0 < sums["accepted"] < sums["drafted"] and sums["preempted"] > 0


def mixed(bench: Bench) -> list[Ask]:
    """Requests that differ in everything, and with the third one a seeded sample."""
    text = bench.alone(Ask(PROMPTS[1], params(repetition_penalty=1.4))).stopper.text
    bias: dict[int, float] = {7: 4.0, 8: 4.0}
    return [
        Ask(PROMPTS[0], params(), "self0"),
        Ask(PROMPTS[1], params(repetition_penalty=1.4, stop=[text[20:22]]), "forked"),
        Ask(PROMPTS[2], params(temperature=0.9, seed=3), "off", groups=2, seed=3),
        Ask(PROMPTS[3], params(repetition_penalty=1.4, max_tokens=33), "model", groups=0),
        Ask(PROMPTS[4], params(presence_penalty=1.5, logit_bias=bias), "erring", groups=1),
        Ask(PROMPTS[1], params(frequency_penalty=1.0), "ngram+self", groups=2),
        Ask(PROMPTS[1], params(max_tokens=17, presence_penalty=1.0), "random", groups=0),
        Ask(PROMPTS[3], params(min_tokens=9, ignore_eos=False), "self1", nodes=3),
        Ask(PROMPTS[2], params(repetition_penalty=1.2), "tree", groups=1),
        Ask(PROMPTS[0], params(frequency_penalty=0.5), "self tree", nodes=7),
        Ask(PROMPTS[4], params(max_tokens=21), "common", groups=2),
        Ask(PROMPTS[2], params(max_tokens=19), "retold", nodes=4),
        Ask(PROMPTS[1], params(max_tokens=15), "skip", groups=0),
    ]


SETTINGS = {
    "one batch": (Setting(), False),
    "three at a time": (Setting(max_running=3), False),
    "chunks of 3": (Setting(prompt_rows=3), False),
    "chunks of 11": (Setting(prompt_rows=11), False),
    "prefix hit": (Setting(), True),
    "few pages": (Setting(pages=26), False),
    "few pages, small chunks": (Setting(pages=26, prompt_rows=5), False),
    "few pages, prefix hit": (Setting(pages=30), True),
    "prefix hit, small chunks": (Setting(prompt_rows=4), True),
    "pages of 1, few": (Setting(pages=104, page_size=1, prompt_rows=9), True),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_mixed_batch(moge: Bench, name: str) -> None:
    setting, warm = SETTINGS[name]
    sums = check(moge, mixed(moge), setting, warm)
    assert 0 < sums["accepted"] < sums["drafted"]
    assert sums["cached"] > 0 or not warm
    assert sums["preempted"] > 0 or "few" not in name


@pytest.mark.parametrize("name", ["one batch", "few pages, small chunks", "prefix hit"])
def test_a_mixed_batch_in_bfloat16(narrow: Bench, name: str) -> None:
    setting, warm = SETTINGS[name]
    sums = check(narrow, mixed(narrow), setting, warm)
    assert 0 < sums["accepted"] < sums["drafted"]


def test_a_dense_mixed_batch_under_pressure(dense: Bench) -> None:
    drafters = ("off", "ngram", "model", "random", "erring", "forked", "ngram+model", "sampled")
    asks = [Ask(PROMPTS[n % 5], params(max_tokens=20 + n), d) for n, d in enumerate(drafters)]
    sums = check(dense, asks, Setting(pages=26, prompt_rows=7), warm=True)
    assert 0 < sums["accepted"] < sums["drafted"]
    assert sums["preempted"] > 0


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
    tell(moge, asks)
    requests = moge.run(asks, Setting(prompt_rows=5, pages=36))
    assert sum(r.spec_stats.accepted for r in requests) > 0
    for ask, request in zip(asks, requests, strict=True):
        plain = moge.alone(ask)
        assert len(request.logprobs) == len(answer(request))
        assert len(request.prompt_logprobs) == len(ask.tokens) - 1
        for ours, theirs, token in zip(request.logprobs, plain.logprobs, answer(plain)):
            assert token in ours
            assert ours == pytest.approx(theirs, abs=1e-4)
        for ours, theirs in zip(request.prompt_logprobs, plain.prompt_logprobs, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("drafter", ["told", "erring", "forked"])
@pytest.mark.parametrize("at", [2, 3, 5, 8, 12])
def test_an_answer_ends_inside_an_accepted_run(moge: Bench, drafter: str, at: int) -> None:
    free = moge.alone(Ask(PROMPTS[1], params()))
    tokens, text = answer(free), free.stopper.text
    stops = {
        "id": params(stop_token_ids=[tokens[at]]),
        "string": params(stop=[text[at : at + 2]]),
        "late string": params(stop=[text[at : at + 2]], min_tokens=at + 3),
        "late id": params(stop_token_ids=[tokens[at]], min_tokens=at + 2),
        "length": params(max_tokens=at + 1),
    }
    for name, stop in stops.items():
        sums = check(moge, [Ask(PROMPTS[1], stop, drafter, nodes=9)])
        assert sums["accepted"] > 0, name
    ended = moge.alone(Ask(PROMPTS[1], stops["id"]))
    assert ended.stopper.reason == "stop" and ended.stopper.matched == tokens[at]


def test_an_oracle_saves_steps(moge: Bench) -> None:
    ask = Ask(PROMPTS[1], params(max_tokens=28), "told", nodes=6)
    tell(moge, [ask])
    request = moge.run([ask])[0]
    assert request.spec_stats.steps == 4  # 28 tokens, up to 7 each


def test_the_draft_models_pages_come_back(moge: Bench, folder: Path) -> None:
    small = load_model(folder / "moge-kin", "float32", "cpu", progress=False)
    own = cache_for(small)
    moge.drafters["shared own"] = lambda kv: ModelDraft(small, OwnKV(own), probs_at)
    sums = check(moge, [Ask(prompt, params(), "shared own", groups=0) for prompt in PROMPTS])
    assert sums["accepted"] > 0
    own.check_integrity()
    assert own.requests == 0 and own.free_pages == own.pages


@pytest.mark.parametrize("kind", ["own", "borrowed"])
def test_a_draft_models_keys_follow_what_was_accepted(moge: Bench, kind: str) -> None:
    """The target drafts for itself and errs at known places only, so the steps can be counted.

    In between another drafter's runs are accepted, past what the model wrote before it erred.
    """

    def erring(logits_V: torch.Tensor, request: RequestView, drafted: Sequence[int]) -> Floats:
        right_V = dense_probs(logits_V, request, drafted)
        place = len(request.tokens) + len(drafted)
        return np.roll(right_V, 1) if place % 5 == 3 else right_V

    model = moge.model
    asks = [Ask(prompt, params(max_tokens=30), kind) for prompt in PROMPTS]
    known = {n: moge.alone(ask).tokens for n, ask in enumerate(asks)}
    moge.drafters[kind] = lambda kv: FallbackDrafter(
        OddDraft(known),
        ModelDraft(model, OwnKV(cache_for(model)) if kind == "own" else BorrowedKV(kv), erring),
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
