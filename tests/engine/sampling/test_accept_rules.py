"""Promises of each rule besides the right probabilities."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from accept_tools import Text, table, target_probs_of

from fastslow.engine.sampling.accept.accept import RULES, accept
from fastslow.engine.sampling.accept.exact import Rule, block, follow_target, tokenwise
from fastslow.engine.sampling.rng import Purpose, draw, stream
from fastslow.engine.types import Floats, OneHot, Tree

V = 5
TARGET, OTHER = table(1, vocab=V), table(2, vocab=V)  # probabilities after every text


def sampled(q: Sequence[Floats], parents: Sequence[int], seed: int) -> Tree:
    draws = stream(seed, 0, Purpose.DRAFT)
    return Tree([draw(q_V, draws) for q_V in q], parents, np.stack(q))


Numbers = Callable[[int, int], np.random.Generator]


def numbers(seed: int, start: int = 0) -> Numbers:
    """For each request of a batch and each depth."""
    return lambda b, depth: stream(seed + b, start + depth, Purpose.ACCEPT)


def judge(rule: Rule, tree: Tree, target_probs: Sequence[Floats | OneHot], seed: int) -> tuple[Text, int]:
    result = accept([tree], [target_probs], numbers(seed), [rule])
    return tuple(result.accepted_nodes[0]), result.tokens[0][-1]


# Drafters that a reproducible answer must not depend on: (place, text) -> tree.
def none(seed: int, done: Text) -> Tree:
    return Tree()


def guesses(seed: int, done: Text) -> Tree:
    return Tree([int(TARGET(done).argmax()), 0, 1, 2, 0, 1], [-1, -1, -1, 0, 0, 1])


def own_numbers(seed: int, done: Text) -> Tree:
    """Sampled from other probabilities."""
    draws = stream(seed, len(done), Purpose.DRAFT)
    text, q_probs = done, []
    for _ in range(3):
        q_probs.append(OTHER(text))
        text = (*text, draw(q_probs[-1], draws))
    return Tree.chain(text[len(done) :], np.stack(q_probs))


def answer(drafter: Callable[[int, Text], Tree], rule: Rule, seed: int) -> tuple[Text, int]:
    done: Text = ()
    accepted = 0
    while len(done) < 12:
        tree = drafter(seed, done)
        result = accept([tree], [target_probs_of(tree, TARGET, done)], numbers(seed, len(done)), [rule])
        accepted += len(result.accepted_nodes[0])
        done = (*done, *result.tokens[0])
    return done[:12], accepted


def test_a_reproducible_answer_is_the_same_with_any_draft_and_with_none() -> None:
    kept = dict.fromkeys([guesses, own_numbers], 0)
    for seed in range(40):
        plain, _ = answer(none, RULES["reproducible"], seed)
        assert plain == answer(none, tokenwise, seed)[0]
        for drafter in kept:
            text, accepted = answer(drafter, RULES["reproducible"], seed)
            assert text == plain
            kept[drafter] += accepted
        for rule in (tokenwise, block):  # chosen drafts are followed
            assert answer(guesses, rule, seed)[0] == plain
    assert min(kept.values()) > 40


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("probs", [False, True], ids=["chosen", "sampled"])
def test_greedy_takes_the_longest_right_path_by_every_rule(rule: Rule, probs: bool) -> None:
    parents = [-1, -1, 1, 1, 3, 0]
    tokens = [3, 1, 3, 2, 0, 1]  # the target says 1, then 2, then 0, then 4
    q = np.full((6, V), 1 / V, dtype=np.float32) if probs else None
    target_probs = [OneHot(1), OneHot(1), OneHot(2), OneHot(4), OneHot(0), OneHot(4), OneHot(4)]
    assert judge(rule, Tree(tokens, parents, q), target_probs, 0) == ((1, 3, 4), 4)
    hot = [np.eye(V, dtype=np.float32)[x.token] for x in target_probs]
    assert judge(rule, Tree(tokens, parents, q), hot, 0) == ((1, 3, 4), 4)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_certain_laws_draw_nothing(rule: Rule) -> None:
    def rng(b: int, depth: int) -> np.random.Generator:
        raise AssertionError("a number was drawn")

    assert accept([Tree.chain([1, 2, 3])], [[OneHot(x) for x in (1, 2, 0, 0)]], rng, [rule]).tokens == [[1, 2, 0]]


@pytest.mark.parametrize("rule", [tokenwise, block, follow_target])
@pytest.mark.parametrize("parents", [(-1, 0, 1, 2), (-1, -1, 0, 0, 1, 1)], ids=["chain", "tree"])
def test_probs_that_differ_by_rounding_only(rule: Rule, parents: Sequence[int]) -> None:
    """As a drafter that is the target in other batch shapes: no NaN, nothing of probability 0."""
    p_V = table(3, vocab=3000)(()).copy()
    p_V[::7] = 0.0
    p_V /= p_V.sum()
    up_V = np.where(p_V > 0, np.nextafter(p_V, np.float32(1)), p_V)
    down_V = np.where(p_V > 0, np.nextafter(p_V, np.float32(0)), p_V)
    for q_V in (p_V, up_V, down_V):
        for target_V in (p_V, up_V, down_V):
            depths = []
            for seed in range(25):
                tree = sampled([q_V] * len(parents), parents, seed)
                path, last = judge(rule, tree, [target_V] * (len(parents) + 1), seed)
                assert all(target_V[x] > 0 for x in (*(tree.tokens[i] for i in path), last))
                depths.append(len(path))
            if rule is not follow_target:
                assert sum(depths) >= 24 * max(depths)


class Refusals:
    """Numbers that refuse whatever can be refused."""

    def random(self) -> float:
        return math.nextafter(1.0, 0.0)


@pytest.mark.parametrize("rule", [tokenwise, block])
def test_a_refusal_that_was_a_rounding_keeps_the_node(rule: Rule) -> None:
    p_V = np.array([0.5, 0.5, 0.0], dtype=np.float32)
    q_V = np.nextafter(p_V, np.float32(1))
    q_V[2] = 1e-9
    for token, path in ((0, [0]), (2, [])):
        tree = Tree([token], [-1], q_V[None])
        found, last = rule(tree, [p_V, p_V], lambda depth: Refusals())  # type: ignore[arg-type,return-value]
        assert found == path and last in (0, 1)
