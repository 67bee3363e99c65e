"""Probabilities of texts by enumeration, computed plainly and apart from the engine, and a chi-square test."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from fastslow.engine.params import SamplingParams

NextProbs = Callable[[tuple[int, ...]], NDArray[np.floating]]
Z = 4.0  # standard deviations; about 3 in 100,000 of a right engine's runs lie beyond


def text_probs(next_probs: NextProbs, vocab: int, length: int) -> NDArray[np.float64]:
    """Probability of every text of `length` tokens, [vocab] * length."""
    out = np.zeros((vocab,) * length)
    for text in itertools.product(range(vocab), repeat=length - 1):
        before = math.prod(float(next_probs(text[:i])[x]) for i, x in enumerate(text))
        if before:
            out[text] = before * np.asarray(next_probs(text), dtype=np.float64)
    return out


def chi_square_fits(want: NDArray[np.float64], texts: Sequence[tuple[int, ...]]) -> None:
    """Pearson's test; cells that expect fewer than 5 are joined.

    Asserts that nothing of probability 0 came, and that chi-square is below its Z-sigma quantile
    (Wilson and Hilferty, 1931).
    """
    counts = np.zeros_like(want)
    for text, count in Counter(texts).items():
        counts[text] = count
    assert not counts[want == 0].any(), "a text of probability 0 came out"
    expected = want * len(texts)
    big = expected >= 5
    cells = [*zip(counts[big], expected[big]), (counts[~big].sum(), expected[~big].sum())]
    cells = [(c, e) for c, e in cells if e > 1]
    chi = sum((c - e) ** 2 / e for c, e in cells)
    freedom = len(cells) - 1
    assert freedom > 0, "one cell proves nothing"
    a = 2 / (9 * freedom)
    limit = freedom * (1 - a + Z * math.sqrt(a)) ** 3
    share = NormalDist().cdf(((chi / freedom) ** (1 / 3) - (1 - a)) / math.sqrt(a))
    assert chi < limit, f"chi-square {chi:.1f} for {freedom} (limit {limit:.1f}, {share:.6f})"


def transformed(next_probs: NextProbs, texts: Sequence[tuple[int, ...]]) -> NDArray[np.float64]:
    """The probability integral transform of every token: uniform in [0, 1) if each has its law given those before it."""
    draws, found = np.random.default_rng(0), []
    for text in texts:
        for place, token in enumerate(text):
            p_V = next_probs(text[:place])
            assert p_V[token] > 0, "a token of probability 0 came out"
            if p_V[token] < 1:  # a certain token shows nothing
                found.append(p_V[:token].sum() + draws.random() * p_V[token])
    return np.array(found)


def uniform_fits(values: NDArray[np.float64], bins: int = 20) -> None:
    """That values are uniform in [0, 1), as `chi_square_fits` tests."""
    places = np.minimum((values * bins).astype(int), bins - 1)
    chi_square_fits(np.full(bins, 1 / bins), [(int(place),) for place in places])


def plain_probs(
    logits: Sequence[float],
    text: Sequence[int],
    prompt_length: int,
    params: SamplingParams,
    end_ids: Sequence[int] = (),
) -> NDArray[np.float64]:
    """Probabilities of the token after `text`, one step at a time, in plain floats."""
    answer = list(text[prompt_length:])
    values = [float(x) for x in logits]
    for token, bias in (params.logit_bias or {}).items():
        values[token] += bias
    if len(answer) < params.min_tokens:
        for token in end_ids:
            values[token] = -math.inf
    for token in range(len(values)):
        if token in text:
            positive = values[token] > 0
            values[token] *= 1 / params.repetition_penalty if positive else params.repetition_penalty
        if token in answer:
            values[token] -= params.presence_penalty
        values[token] -= params.frequency_penalty * answer.count(token)
    if params.temperature == 0:
        best = max(range(len(values)), key=lambda i: values[i])
        hot = np.zeros(len(values))
        hot[best] = 1.0
        return hot
    top = max(values)
    p = [math.exp((x - top) / params.temperature) for x in values]
    ranked = sorted(range(len(p)), key=lambda i: -p[i])
    if params.top_k > 0:
        for token in ranked[params.top_k :]:
            p[token] = 0.0
    total, mass = sum(p), 0.0
    for token in ranked:
        if params.top_p < 1 and mass >= params.top_p * total:
            p[token] = 0.0
        mass += p[token]
    least = params.min_p * max(p)
    p = [x if x >= least else 0.0 for x in p]
    whole = math.fsum(p)
    return np.array([x / whole for x in p])
