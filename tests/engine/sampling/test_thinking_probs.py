"""Sampled with a thinking budget, end to end: the probabilities of plain decoding with it, whatever drafts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from distributions import chi_square_fits, plain_probs, text_probs
from engine_tools import Ask, Bench, Setting, answer
from numpy.typing import NDArray
from probs_tools import LENGTH, PROMPT, RUNS, VOCAB, bench, folder, logits, params
from spellings import Pieces, letters
from thoughts import Bound

from fastslow.engine.text.thought import ThoughtTags

__all__ = ["bench", "folder", "logits"]  # fixtures
OPEN, CLOSE, SO = 9, 10, 11
WORDS = letters(VOCAB)
TAGS = ThoughtTags(WORDS[OPEN], WORDS[CLOSE])
SOFT = Bound(6, 6, opened=True, tags=TAGS)
LATE = Bound(2, 1, closing=WORDS[SO], opened=True, tags=TAGS)
HARD = Bound(1, closing=WORDS[SO], opened=True, tags=TAGS)
OWN = Bound(1, tags=TAGS)  # where the answer opens the thought
CASES = {
    "soft, model": ("model", None, SOFT, "token"),
    "soft, chosen tree": ("chosen tree", None, SOFT, "token"),
    "soft, sampled tree": ("sampled tree", None, SOFT, "token"),
    "soft, sampled tree, block": ("sampled tree", 2, SOFT, "block"),
    "soft, model, block": ("model", None, LATE, "block"),
    "hard, self": ("self", None, HARD, "token"),
    "hard, tokens in common, block": ("common", None, HARD, "block"),
    "late, fast mode": ("ngram+self", 2, LATE, "token"),
    "late, told again": ("retold", None, LATE, "token"),
    "its own thought, sampled tree": ("sampled tree", None, OWN, "block"),
}


def lift_at(bound: Bound, spent: int) -> float:
    assert bound.most is not None
    soft = spent - (bound.most - bound.soft) + 1
    return 12 * soft / bound.soft if bound.soft and soft > 0 else 0.0


def law_of(
    bound: Bound, begun: tuple[int, ...], values: list[float], heat: float
) -> NDArray[np.float64]:
    """The next token's probabilities, computed plainly: walks the answer and keeps a few integers."""
    thinking, spent, said = bound.opened, 0, False
    ends = [*([SO] if bound.closing else []), CLOSE]

    def due() -> list[int]:
        return [] if not thinking or spent < (bound.most or 0) else ([CLOSE] if said else ends)

    todo = due()
    for token in begun:
        if todo:
            assert token == todo[0], "a text of probability 0"
            todo, said = todo[1:], True
            thinking = token != CLOSE
        elif thinking and token != CLOSE:
            spent += 1
            todo = due()
        else:
            thinking = token == OPEN
            todo = due()
    if todo:
        only_V: NDArray[np.float64] = np.eye(VOCAB)[todo[0]]
        return only_V
    shaped = list(values)
    if thinking:
        shaped[CLOSE] += lift_at(bound, spent)
    return plain_probs(shaped, [*PROMPT, *begun], len(PROMPT), params(temperature=heat))


@pytest.mark.parametrize("name", CASES)
def test_the_law_with_a_budget(
    bench: Bench,
    logits: Callable[[tuple[int, ...], int | None], list[float]],
    name: str,
) -> None:
    drafter, groups, bound, rule = CASES[name]
    bench.tokenizer = Pieces(WORDS)
    asked = params(temperature=1.5, logit_bias={OPEN: 4.0} if not bound.opened else None)

    def next_probs(begun: tuple[int, ...]) -> NDArray[np.float64]:
        values = list(logits(begun, groups))
        values[OPEN] += 0.0 if bound.opened else 4.0
        return law_of(bound, begun, values, 1.5)

    asks = [Ask(PROMPT, asked, drafter, 4, groups, seed, bound, rule) for seed in range(RUNS)]
    requests = bench.run(asks, Setting(pages=1024, max_running=200))
    assert sum(r.spec_stats.accepted for r in requests) > RUNS / 20
    texts = [tuple(answer(r)[:LENGTH]) for r in requests]
    joint = text_probs(
        lambda begun: next_probs(begun) if possible(next_probs, begun) else np.zeros(VOCAB),
        VOCAB,
        LENGTH,
    )
    chi_square_fits(joint.sum(2), [text[:2] for text in texts])
    chi_square_fits(joint.sum(0), [text[1:] for text in texts])
    spent = [r.thinking.outcome(r.tokens)[0] for r in requests if r.thinking is not None]
    assert max(spent) <= (bound.most or 0)


def possible(
    next_probs: Callable[[tuple[int, ...]], NDArray[np.float64]], text: tuple[int, ...]
) -> bool:
    """Whether a text has mass: what follows a text that a budget forbids is not asked for."""
    return all(next_probs(text[:i])[x] > 0 for i, x in enumerate(text))


def test_a_lossy_rule_keeps_to_the_budget_all_the_same(bench: Bench) -> None:
    bench.tokenizer = Pieces(WORDS)
    hot = params(temperature=1.5, max_tokens=12)
    bound = Bound(3, closing=WORDS[SO] * 2, opened=True, tags=TAGS)
    asks = [
        Ask(PROMPT, hot, drafter, 5, None, n, bound, "lossy-typical")
        for drafter in ("sampled tree", "self", "chosen tree")
        for n in range(20)
    ]
    over = 0
    for request in bench.run(asks):
        thought = answer(request)[: answer(request).index(CLOSE)]
        if len(thought) >= 3 and CLOSE not in answer(request)[:3]:
            assert thought[3:] == [SO, SO]
            over += 1
    assert over > 10
