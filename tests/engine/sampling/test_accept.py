"""Acceptance alone: any tree over any probabilities gives tokens with exactly the target's probabilities."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from distributions import chi_square_fits, text_probs

from fastslow.engine.sampling.accept.accept import accept
from fastslow.engine.sampling.accept.exact import Rule, block, tokenwise
from fastslow.engine.sampling.rng import Purpose, draw, stream
from fastslow.engine.types import Floats, Tree

V = 6
DEPTH = 3
RUNS = 1200  # test_accept_exact.py needs no samples; this file uses the real streams


def table(seed: int, sharpness: float = 1.5) -> Callable[[tuple[int, ...]], Floats]:
    """Probabilities after every text."""

    @cache
    def law_of(text: tuple[int, ...]) -> Floats:
        random = np.random.default_rng([seed, len(text), *text])
        p_V = np.exp(sharpness * random.normal(size=V))
        law_V: Floats = (p_V / p_V.sum()).astype(np.float32)
        return law_V

    return law_of


target = table(1)
close = table(1, 0.9)  # a drafter that is like the target


def chain(q: Callable[[tuple[int, ...]], Floats], draws: np.random.Generator) -> Tree:
    """Sampled, no branches."""
    text: list[int] = []
    q_probs = []
    for _ in range(DEPTH):
        q_probs.append(q(tuple(text)))
        text.append(draw(q_probs[-1], draws))
    return Tree.chain(text, np.stack(q_probs))


def siblings(q: Callable[[tuple[int, ...]], Floats], draws: np.random.Generator) -> Tree:
    """Sampled: three from the same q at each node of the last one's line, the same token perhaps twice."""
    tokens: list[int] = []
    parents: list[int] = []
    q_probs = []
    text: tuple[int, ...] = ()
    parent = -1
    for _ in range(DEPTH):
        q_V = q(text)
        level = [draw(q_V, draws) for _ in range(3)]
        tokens += level
        parents += [parent] * 3
        q_probs += [q_V] * 3
        parent, text = len(tokens) - 1, (*text, level[-1])
    return Tree(tokens, parents, np.stack(q_probs))


def run(
    make: Callable[..., Tree], q: Callable[..., Floats], seed: int, rule: Rule
) -> tuple[list[int], int]:
    """DEPTH + 1 tokens, in as many steps as it takes; and how many drafts were accepted."""
    text: list[int] = []
    accepted = 0
    while len(text) <= DEPTH:
        done = tuple(text)
        tree = make(
            lambda more, done=done: q((*done, *more)), stream(seed, len(text), Purpose.DRAFT)
        )
        runs: list[tuple[int, ...]] = [()]
        for token, parent in zip(tree.tokens, tree.parents):
            runs.append((*runs[parent + 1], token))
        target_probs = [target((*done, *run)) for run in runs]

        def rng(b: int, depth: int, at: int = len(text)) -> np.random.Generator:
            return stream(seed, at + depth, Purpose.ACCEPT)

        result = accept([tree], [target_probs], rng, [rule])
        accepted += len(result.accepted_nodes[0])
        assert [tree.tokens[i] for i in result.accepted_nodes[0]] == result.tokens[0][:-1]
        text += result.tokens[0]
    return text[: DEPTH + 1], accepted


@pytest.mark.parametrize(
    ("make", "q", "rule"),
    [
        pytest.param(chain, close, tokenwise, id="chain-close-token"),
        pytest.param(siblings, close, block, id="siblings-close-block"),
    ],
)
def test_the_law_of_accepted_tokens(
    make: Callable[..., Tree], q: Callable[[tuple[int, ...]], Floats], rule: Rule
) -> None:
    runs = [run(make, q, seed, rule) for seed in range(RUNS)]
    assert sum(accepted for _, accepted in runs) > RUNS / 4
    want = text_probs(target, V, 2)
    chi_square_fits(want, [tuple(text[:2]) for text, _ in runs])
    later = text_probs(target, V, DEPTH).sum(0)  # tokens two and three
    chi_square_fits(later, [tuple(text[1:3]) for text, _ in runs])


def one(tree: Tree, *target_probs: list[float], seed: int = 0) -> tuple[list[int], list[int]]:
    rows = [np.array(probs, dtype=np.float32) for probs in target_probs]
    result = accept([tree], [rows], lambda b, d: stream(seed, d, Purpose.ACCEPT), [tokenwise])
    return result.accepted_nodes[0], result.tokens[0]


def test_the_empty_draft_is_plain_decoding() -> None:
    p_V = target(())
    for seed in range(50):
        path, tokens = one(Tree(), p_V.tolist(), seed=seed)
        assert path == []
        assert tokens == [draw(p_V, stream(seed, 0, Purpose.ACCEPT))]
