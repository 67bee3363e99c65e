"""Sampled, end to end: what comes out has the target's probabilities, whatever drafted it."""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from accept_tools import table
from distributions import NextProbs, chi_square_fits, plain_probs, text_probs, transformed, uniform_fits
from drafts import UntimedController
from engine_tools import Ask, Bench, Make, RandomDraft, SampledDraft, Setting, answer, cache_for, finish, write_kin
from grammar_tools import GrammarKit
from numpy.typing import NDArray
from reference_model import ReferenceModel
from spellings import Pieces, letters, renumbered
from thoughts import Bound

from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import BorrowedKV, OwnKV
from fastslow.draft.model.vocab import SharedTokens
from fastslow.draft.ngram import NgramDraft
from fastslow.draft.router import DrafterRouter
from fastslow.draft.several import FallbackDrafter
from fastslow.engine.backends.loader import load_model
from fastslow.engine.core.engine_core import EngineCore
from fastslow.engine.core.request import Request
from fastslow.engine.params import GrammarSpec, SamplingParams, Speculation
from fastslow.engine.text.thought import ThoughtTags
from fastslow.engine.token_mask import TokenMask
from fastslow.engine.types import Floats
from fastslow.policies.speculation.step_cost import StepCostCurve

Logits = Callable[[tuple[int, ...], int | None], list[float]]
VOCAB = 12
EOS = 2
PROMPT = (5, 6, 7, 5, 8, 6)
LENGTH = 3  # tokens looked at; the answers are longer, so that drafts are deep
RUNS = 300
# Where more runs find draws that are not independent of each other.
MANY = {"ngram": 1200, "penalties": 800, "penalties, sampled": 800}
FIELDS: dict[str, Any] = {"vocab_size": VOCAB, "num_hidden_layers": 1, "eos_token_id": EOS}
OTHER = table(2, 1.0, VOCAB)
OPEN, CLOSE, SO = 9, 10, 11
WORDS = letters(VOCAB)
TAGS = ThoughtTags(WORDS[OPEN], WORDS[CLOSE])
SOFT = Bound(6, 6, opened=True, tags=TAGS)
LATE = Bound(2, 1, closing=WORDS[SO], opened=True, tags=TAGS)
HARD = Bound(1, closing=WORDS[SO], opened=True, tags=TAGS)
OWN = Bound(1, tags=TAGS)  # where the answer opens the thought
PENALTIES = {"presence_penalty": 1.2, "frequency_penalty": 0.8, "repetition_penalty": 1.5}


def params(**fields: Any) -> SamplingParams:
    shape: dict[str, Any] = {"max_tokens": LENGTH + 2, "temperature": 1.0, "ignore_eos": True}
    return SamplingParams(**{**shape, **fields})


class Case(NamedTuple):
    drafter: str
    groups: int | None
    asked: SamplingParams
    bound: Bound | None = None
    rule: str = "token"
    grammar: GrammarSpec | None = None
    thought: SamplingParams | None = None


# of tokens 4 to 8; what follows a drawn token is often certain
SPELT = GrammarSpec(regex="(e|fgh|g(e|i)|hff|i){8,9}")
HOT, COLD = params(temperature=1.5), params(temperature=0.0)
MILD = params(temperature=0.7, top_p=0.9)
ENDS = params(temperature=2.0, ignore_eos=False)
FIRM = Bound(2, opened=True, tags=TAGS, ends=frozenset({EOS}))
CASES = {
    "ngram": Case("ngram", None, params(temperature=1.3)),
    "top_p": Case("model", None, params(top_p=0.8, temperature=1.5)),
    "top_k": Case("sampled tree", None, params(top_k=4, temperature=1.5)),
    "min_p": Case("self", None, params(min_p=0.1, temperature=1.5)),
    "penalties": Case("chosen tree", None, params(**PENALTIES)),
    "penalties, sampled": Case("self", 2, params(frequency_penalty=1.8, repetition_penalty=1.4)),
    "logit_bias": Case("sampled tree", 2, params(logit_bias={3: 2.5, 7: -4.0, 5: 1.0})),
    "min_tokens": Case("model", None, params(min_tokens=1, ignore_eos=False, temperature=2.0)),
    "soft, chosen tree": Case("chosen tree", None, HOT, SOFT),
    "soft, model, block": Case("model", None, HOT, LATE, "block"),
    "hard, tokens in common, block": Case("common", None, HOT, HARD, "block"),
    "late, fast mode": Case("ngram+self", 2, HOT, LATE),
    "its own thought, sampled tree": Case(
        "sampled tree", None, params(temperature=1.5, logit_bias={OPEN: 4.0}), OWN, "block"
    ),
    "other sampling in the thought": Case("model", None, HOT, SOFT, "block", None, MILD),
    "a greedy answer": Case("common", None, COLD, LATE, thought=params(temperature=1.5, top_k=4)),
    "penalties in the thought": Case("sampled tree", 2, HOT, SOFT, thought=params(**PENALTIES)),
    "an end that closes": Case("self", None, ENDS, FIRM, "block", thought=ENDS),
    "grammar, tokens in common, block": Case("common", None, HOT, None, "block", SPELT),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kin(tmp_path_factory.mktemp("probs") / "target", routed=0.5, **FIELDS)


@pytest.fixture(scope="module")
def bench(folder: Path) -> Bench:
    model = load_model(folder, "float32", "cpu", progress=False)
    kin = write_kin(folder.parent / "kin", jitter=0.15, routed=0.5, **FIELDS)
    small = load_model(kin, "float32", "cpu", progress=False)
    spoken = [4, 11, 2, 5, 9, 6, 0, 3, 8, 7, 10]  # all but one, in another order
    stranger = load_model(renumbered(folder.parent / "stranger", kin, spoken), "float32", "cpu", progress=False)
    ours = Pieces(WORDS)
    theirs = Pieces([ours.pieces[x] for x in spoken])

    def own() -> OwnKV:
        return OwnKV(cache_for(stranger, 1024))

    def common() -> SharedTokens:
        return SharedTokens(ours, theirs, VOCAB)

    drafters: dict[str, Make] = {
        "ngram": lambda kv: NgramDraft(longest=2, shortest=1),
        "model": lambda kv: ModelDraft(small, OwnKV(cache_for(small, 1024))),
        "self": lambda kv: ModelDraft(model, BorrowedKV(kv), 0),
        "common": lambda kv: ModelDraft(stranger, own(), vocab_map=common()),
        "chosen tree": lambda kv: RandomDraft(),
        "sampled tree": lambda kv: SampledDraft(_q, width=2),
        "ngram+self": lambda kv: FallbackDrafter(NgramDraft(), ModelDraft(model, BorrowedKV(kv), 1)),
    }
    bench = Bench(model, drafters)
    bench.kit = GrammarKit(Pieces("abcdefghijkl"), VOCAB, ThoughtTags("j", "k"))
    return bench


def _q(text: Sequence[int]) -> Floats:
    return OTHER((text[-1],))


@pytest.fixture(scope="module")
def logits(folder: Path) -> Logits:
    """The independent model's logits after PROMPT and an answer's beginning."""
    plain = ReferenceModel(folder)

    @cache
    def after(begun: tuple[int, ...], groups: int | None) -> list[float]:
        values: list[float] = plain.logits([*PROMPT, *begun], groups)[-1].tolist()
        return values

    return after


def thought(bound: Bound, begun: tuple[int, ...]) -> tuple[int | None, float, bool]:
    """The token that a budget forces next, -1 after a text that it forbids; the lift of CLOSE; whether it is a thought.

    Computed plainly: walks the answer and keeps a few integers.
    """
    thinking, spent, said = bound.opened, 0, False
    ends = [*([SO] if bound.closing else []), CLOSE]
    assert bound.most is not None

    def due() -> list[int]:
        return [] if not thinking or spent < (bound.most or 0) else ([CLOSE] if said else ends)

    todo = due()
    for token in begun:
        if todo:
            if token != todo[0]:
                return -1, 0.0, thinking
            todo, said = todo[1:], True
            thinking = token != CLOSE
        elif thinking and token != CLOSE:
            spent += 1
            todo = due()
        else:
            thinking = token == OPEN
            todo = due()
    soft = spent - (bound.most - bound.soft) + 1
    lifted = thinking and bound.soft and soft > 0
    return (todo[0] if todo else None), 12 * soft / bound.soft if lifted else 0.0, thinking


def next_probs_of(bench: Bench, logits: Logits, ask: Ask) -> NextProbs:
    """The law of an answer's next token, given those before it: computed plainly."""
    ends = () if ask.params.ignore_eos else (EOS,)
    grammar = bench.request(0, ask).grammar

    def next_probs(begun: tuple[int, ...]) -> NDArray[np.float64]:
        only, lift, inside = thought(ask.bound, begun) if ask.bound else (None, 0.0, False)
        mask = TokenMask() if grammar is None else TokenMask(-1)
        if grammar is not None and grammar.fits(PROMPT, begun):
            mask = grammar.at(PROMPT, begun)
        only = only if mask.only is None else mask.only
        if set(begun) & set(ends):
            only = EOS  # an answer that ended is filled up with end tokens
        if only is not None:
            return np.array([float(token == only) for token in range(VOCAB)])
        values = list(logits(begun, ask.groups))
        values[CLOSE] += lift
        own = ask.thought if inside and ask.thought else ask.params
        p = plain_probs(values, [*PROMPT, *begun], len(PROMPT), own, ends)
        if ask.bound and ask.bound.ends and begun[-1:] == (CLOSE,):
            p[EOS] = 0.0  # nothing was answered yet
            p /= p.sum()
        if inside and ask.bound and ask.bound.ends:
            p[CLOSE], p[EOS] = p[CLOSE] + p[EOS], 0.0
        if mask.allowed is not None:
            p = p * mask.allowed[:VOCAB] / p[mask.allowed[:VOCAB]].sum()
        return p

    return next_probs


LONG = ("penalties, sampled", "soft, chosen tree", "other sampling in the thought")  # others show what they do


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in CASES])
def test_the_law_of_drafted_tokens(bench: Bench, logits: Logits, name: str) -> None:
    case = CASES[name]
    asked, runs = case.asked, MANY.get(name, RUNS)
    bench.tokenizer = Pieces(WORDS) if case.bound else None
    asks = [
        Ask(*(PROMPT, asked, case.drafter, 4, case.groups, seed), *(case.bound, case.rule, case.grammar, case.thought))
        for seed in range(runs)
    ]
    requests = list[Request]()
    for first in range(0, runs, 100):  # those that wait cost time, too
        requests += bench.run(asks[first : first + 100], Setting(pages=512, max_running=100))
    drafted = sum(r.spec_stats.drafted for r in requests)
    accepted = sum(r.spec_stats.accepted for r in requests)
    assert runs / 20 < accepted < drafted
    texts = [tuple((answer(r) + [EOS] * LENGTH)[:LENGTH]) for r in requests]
    joint = text_probs(next_probs_of(bench, logits, asks[0]), VOCAB, LENGTH)
    chi_square_fits(joint.sum(0), [text[1:] for text in texts])
    chi_square_fits(joint.sum(2), [text[:2] for text in texts])
    for r in requests:
        if r.thinking is not None and case.bound is not None:
            assert r.thinking.outcome(r.tokens)[0] <= (case.bound.most or 0)


DRAFTERS = ("model", "self", "sampled tree", "ngram+self", "common")
FEW = [("model", "token", 200), ("sampled tree", "block", 200)]  # answers of seven tokens each
ALL = [*product(DRAFTERS, ("token", "block"), [3000])]
# a short draft does not pay, a long one does: then what follows a drawn token must not decide whether it runs
CONCAVE = StepCostCurve([1, 2, 8, 16, 64, 512], [1.0, 1.9, 2.0, 2.1, 2.2, 4.0])


@pytest.mark.parametrize(
    ("drafter", "rule", "count"), [*FEW, *(pytest.param(*one, marks=pytest.mark.slow) for one in ALL)]
)
def test_every_token_has_its_law_under_a_grammar(
    bench: Bench, logits: Logits, drafter: str, rule: str, count: int
) -> None:
    """With the adaptive length, but no rests: it must not look at what is drawn in its own step."""
    asked = params(max_tokens=LENGTH + 4)
    asks = [Ask(PROMPT, asked, drafter, seed=seed, rule=rule, grammar=SPELT) for seed in range(count)]
    kv = cache_for(bench.model, 4096)
    controller = UntimedController(CONCAVE)
    made = {Speculation(drafter=drafter): bench.drafters[drafter](kv)}
    core = EngineCore(bench.model, kv, DrafterRouter(made), 512, 64, controller)
    requests = [bench.request(number, ask) for number, ask in enumerate(asks)]
    for request in requests:
        policy = controller.policy(request.speculation, drafter)
        request.drafting = request.drafting._replace(policy=policy)
    finish(core, requests)
    drafted = sum(request.spec_stats.drafted for request in requests)
    accepted = sum(request.spec_stats.accepted for request in requests)
    assert 4 * count < drafted and 2 * count < accepted < drafted
    answers = [tuple(answer(request)) for request in requests]
    assert sum(map(len, answers)) > 6.5 * count
    next_probs = next_probs_of(bench, logits, asks[0])
    chi_square_fits(text_probs(next_probs, VOCAB, LENGTH), [text[:LENGTH] for text in answers])
    uniform_fits(transformed(next_probs, answers))
