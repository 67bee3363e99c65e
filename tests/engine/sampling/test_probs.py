"""Sampled, end to end: what comes out has the target's probabilities, whatever drafted it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from distributions import chi_square_fits, plain_probs, text_probs
from engine_tools import Ask, Bench, Setting, answer
from numpy.typing import NDArray
from probs_tools import EOS, LENGTH, MANY, PROMPT, RUNS, VOCAB, bench, folder, logits, params

__all__ = ["bench", "folder", "logits"]  # fixtures
PLAIN = params(temperature=1.3)
CASES = {
    "ngram": ("ngram", None, PLAIN),
    "model": ("model", None, PLAIN),
    "self": ("self", None, PLAIN),
    "tokens in common": ("common", None, PLAIN),
    "told again": ("retold", 2, PLAIN),
    "chosen tree": ("chosen tree", None, PLAIN),
    "sampled tree": ("sampled tree", None, PLAIN),
    "first, fast mode": ("ngram+self", 2, PLAIN),
    "top_p": ("model", None, params(top_p=0.8, temperature=1.5)),
    "top_k": ("sampled tree", None, params(top_k=4, temperature=1.5)),
    "min_p": ("self", None, params(min_p=0.1, temperature=1.5)),
    "penalties": (
        "chosen tree",
        None,
        params(presence_penalty=1.2, frequency_penalty=0.8, repetition_penalty=1.5),
    ),
    "penalties, sampled": ("self", 2, params(frequency_penalty=1.8, repetition_penalty=1.4)),
    "logit_bias": ("sampled tree", 2, params(logit_bias={3: 2.5, 7: -4.0, 5: 1.0})),
    "min_tokens": ("model", None, params(min_tokens=1, ignore_eos=False, temperature=2.0)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_law_of_drafted_tokens(
    bench: Bench, logits: Callable[[tuple[int, ...], int | None], list[float]], name: str
) -> None:
    drafter, groups, asked = CASES[name]
    runs = MANY.get(name, RUNS)
    ends = () if asked.ignore_eos else (EOS,)

    ended = np.zeros(VOCAB)
    ended[EOS] = 1.0  # an answer that ended is filled up with end tokens

    def next_probs(begun: tuple[int, ...]) -> NDArray[np.float64]:
        if set(begun) & set(ends):
            return ended
        after = logits(begun, groups)
        return plain_probs(after, [*PROMPT, *begun], len(PROMPT), asked, ends)

    asks = [Ask(PROMPT, asked, drafter, 4, groups, seed) for seed in range(runs)]
    requests = bench.run(asks, Setting(pages=1024, max_running=200))
    drafted = sum(r.spec_stats.drafted for r in requests)
    accepted = sum(r.spec_stats.accepted for r in requests)
    assert runs / 20 < accepted < drafted
    texts = [tuple((answer(r) + [EOS] * LENGTH)[:LENGTH]) for r in requests]
    joint = text_probs(next_probs, VOCAB, LENGTH)
    chi_square_fits(joint.sum(0), [text[1:] for text in texts])
    chi_square_fits(joint.sum(2), [text[:2] for text in texts])
    for place in range(LENGTH):
        rest = tuple(axis for axis in range(LENGTH) if axis != place)
        chi_square_fits(joint.sum(rest), [(text[place],) for text in texts])
