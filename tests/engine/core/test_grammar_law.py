"""Sampled answers under a grammar follow the target's law, whatever drafts and however far it drafts."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from distributions import chi_square_fits, plain_probs, text_probs
from engine_tools import Ask, Bench, answer, cache_for, finish
from probs_tools import EOS, LENGTH, PROMPT, VOCAB, bench, folder, logits, params  # noqa: F401
from spellings import Pieces

from fastslow.draft.router import DrafterRouter
from fastslow.engine.core.engine_core import EngineCore
from fastslow.engine.params import GrammarSpec, Speculation
from fastslow.engine.sampling.accept.accept import RULES
from fastslow.engine.sampling.answer_start import AtOnce, Spellings
from fastslow.engine.sampling.grammar import Grammar
from fastslow.engine.sampling.llguidance_grammar import GrammarCompiler
from fastslow.policies.speculation.controller import SpeculationController
from fastslow.policies.speculation.step_cost import StepCostCurve

RUNS = 2000
# a short draft does not pay, a long one does: then what follows a drawn token must not decide whether it runs
CONCAVE = StepCostCurve([1, 2, 8, 16, 64, 512], [1.0, 1.9, 2.0, 2.1, 2.2, 4.0])
DRAFTERS = ("model", "self", "sampled tree", "ngram+self", "common", "retold")


TOKENIZER = Pieces("abcdefghijkl")
COMPILER = GrammarCompiler(TOKENIZER, VOCAB, ())


def grammar_of(spec: GrammarSpec) -> Grammar:
    start = AtOnce(Spellings(TOKENIZER, None, VOCAB))
    return Grammar(start, COMPILER.matcher(spec), frozenset({EOS}), len(PROMPT))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_the_law_under_a_grammar(
    bench: Bench,  # noqa: F811
    logits: Callable[[tuple[int, ...], int | None], list[float]],  # noqa: F811
    drafter: str,
    rule: str,
) -> None:
    some = [re.escape(TOKENIZER.token_bytes(token).decode()) for token in range(4, 9)]
    a, b, c, d, e = some
    spec = GrammarSpec(regex=f"({a}|{b}{c}{d}|{c}({a}|{e})|{d}{b}{b}|{e}){{8,9}}")
    core_kv = cache_for(bench.model, 4096)
    controller = SpeculationController(lambda groups: CONCAVE)
    made = {Speculation(drafter=drafter): bench.drafters[drafter](core_kv)}
    core = EngineCore(bench.model, core_kv, DrafterRouter(made), 512, 64, controller)
    ask = Ask(PROMPT, params(max_tokens=LENGTH + 4), drafter, rule=rule)
    requests = []
    for seed in range(RUNS):
        request = bench.request(seed, Ask(**{**ask.__dict__, "seed": seed}))
        request.grammar = grammar_of(spec)
        request.policy = controller.policy(request.speculation, drafter)
        request.rule = RULES[rule]
        requests.append(request)
    finish(core, requests)
    drafted = sum(request.spec_stats.drafted for request in requests)
    assert drafted > RUNS

    def law(text: tuple[int, ...]) -> np.ndarray:
        grammar = grammar_of(spec)
        if not grammar.fits([*PROMPT], text):
            return np.eye(VOCAB)[0]
        mask = grammar.at([*PROMPT], text)
        if mask.only is not None:
            return np.eye(VOCAB)[mask.only]
        p = plain_probs(logits(text, None), [*PROMPT, *text], len(PROMPT), ask.params)
        assert mask.allowed is not None
        p = p * mask.allowed[:VOCAB]
        return np.asarray(p / p.sum())

    want = text_probs(law, VOCAB, LENGTH)
    chi_square_fits(want, [tuple(answer(request)[:LENGTH]) for request in requests])
