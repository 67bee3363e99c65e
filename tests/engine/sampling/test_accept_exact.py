"""What every rule gives, by exact sums over all drafts and all draws, jointly over several tokens."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest
from accept_tools import (
    Growing,
    Make,
    NextProbs,
    Text,
    V,
    apart,
    chain,
    chosen,
    joint_probs,
    mean_accepted,
    one_step,
    repeats,
    shaped_by_what_was_drawn,
    table,
    target_probs_of,
)
from coins import Outcomes, Stream, World
from distributions import text_probs

from fastslow.engine.sampling.accept.accept import RULES, accept
from fastslow.engine.sampling.accept.exact import Rule
from fastslow.engine.sampling.rng import Purpose, draw
from fastslow.engine.types import FailedRow, Floats, OneHot, Tree

ROUNDING = 2e-6  # probabilities are float32
SAMPLED_RULES = {name: RULES[name] for name in ("token", "block")}


@pytest.mark.parametrize("holes", [False, True], ids=["full", "holes"])
@pytest.mark.parametrize("make", [chain, repeats, apart, shaped_by_what_was_drawn, chosen])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_joint_law_of_a_step(rule: Rule, make: Make, holes: bool) -> None:
    target, q = table(1, holes=holes), table(2, 1.0, holes=holes)
    joint = joint_probs(Outcomes(one_step(rule, make, q, target)), target, 4)
    assert joint.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(joint, text_probs(target, V, 4), atol=ROUNDING)


def test_the_enumeration_notices_a_wrong_rule() -> None:
    def believes(tree: Tree, target_probs: object, place: object) -> tuple[list[int], int]:
        path, _ = RULES["token"](tree, target_probs, place)  # type: ignore[arg-type]
        return path, int(np.argmax(target_probs[path[-1] + 1 if path else 0]))  # type: ignore[index]

    target = table(1)
    joint = joint_probs(Outcomes(one_step(believes, chain, table(2, 1.0), target)), target, 4)
    assert np.abs(joint - text_probs(target, V, 4)).max() > 1e-2


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_certain_laws_among_others(rule: Rule) -> None:
    """As where a grammar leaves one token: its probabilities are not written out, and nothing is drawn."""
    open_target, q = table(1), table(2, 1.0)

    def certain(text: Text) -> int | None:
        return 2 if len(text) == 1 and text[0] != 1 else None

    def step(world: World) -> Text:
        tree = apart(q, world.stream(0, Purpose.DRAFT))
        target_probs: list[Floats | OneHot] = list(target_probs_of(tree, open_target))
        for i, parent in enumerate(tree.parents):
            if parent == -1 and certain((tree.tokens[i],)) is not None:
                target_probs[i + 1] = OneHot(2)
        rng = lambda b, depth: world.stream(depth, Purpose.ACCEPT)
        return tuple(accept([tree], [target_probs], rng, [rule]).tokens[0])  # type: ignore[arg-type]

    def target(text: Text) -> Floats:
        token = certain(text)
        return open_target(text) if token is None else np.eye(V, dtype=np.float32)[token]

    joint = joint_probs(Outcomes(step), target, 3)
    np.testing.assert_allclose(joint, text_probs(target, V, 3), atol=ROUNDING)


@pytest.mark.parametrize("make", [chain, apart, chosen])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_joint_law_where_rows_fail(rule: Rule, make: Make) -> None:
    """Drafted rows without probabilities: the answer may come to such a node, and the step ends there."""
    target, q = table(1), table(2, 1.0)

    def step(world: World) -> Text:
        tree = make(q, world.stream(0, Purpose.DRAFT))
        rows: list[Floats | FailedRow] = list(target_probs_of(tree, target))
        for i, (token, parent) in enumerate(zip(tree.tokens, tree.parents), 1):
            if token == 1 or (parent >= 0 and isinstance(rows[parent + 1], FailedRow)):
                rows[i] = FailedRow(FloatingPointError("the logits are not finite numbers"))
        rng = lambda b, depth: world.stream(depth, Purpose.ACCEPT)
        found = accept([tree], [rows], rng, [rule])  # type: ignore[arg-type]
        assert [tree.tokens[i] for i in found.accepted_nodes[0]] == found.tokens[0][:-1]
        assert 1 not in found.tokens[0][:-1], "nothing comes after a failed row"
        return tuple(found.tokens[0])

    joint = joint_probs(Outcomes(step), target, 4)
    np.testing.assert_allclose(joint, text_probs(target, V, 4), atol=ROUNDING)


def test_the_papers_example() -> None:
    """Two tokens, no context: 10/9 accepted token by token, 11/9 by block (2403.10444, section 2)."""
    target = lambda text: np.array([1 / 3, 2 / 3, 0], dtype=np.float32)
    q = lambda text: np.array([2 / 3, 1 / 3, 0], dtype=np.float32)

    def pair(q: NextProbs, draws: Stream) -> Tree:
        growing = Growing(q, draws)
        growing.add(growing.add(-1))
        return growing.tree()

    assert mean_accepted(RULES["token"], pair, q, target) == pytest.approx(10 / 9, abs=1e-6)
    assert mean_accepted(RULES["block"], pair, q, target) == pytest.approx(11 / 9, abs=1e-6)


def test_block_on_a_chain_is_the_papers_recursion() -> None:
    """p_i = min(p_(i-1) p/q, 1); node i is the last one accepted with h_i = S_i / (S_i + 1 - p_i)."""
    target, q = table(3), table(4, 1.0)
    want: dict[int, float] = defaultdict(float)
    for text in itertools.product(range(V), repeat=3):
        drafted = math.prod(float(q(text[:i])[x]) for i, x in enumerate(text))
        paid = [1.0]
        for i, x in enumerate(text):
            paid.append(min(paid[-1] * float(target(text[:i])[x]) / float(q(text[:i])[x]), 1.0))
        refused = 1.0
        for i in (3, 2, 1, 0):
            left = np.maximum(paid[i] * target(text[:i]) - q(text[:i]), 0)
            over = float(left.sum(dtype=np.float64))
            take = paid[3] if i == 3 else over / (over + 1.0 - paid[i])
            want[i] += drafted * refused * take
            refused *= 1.0 - take
    got: dict[int, float] = defaultdict(float)
    for text, probability in Outcomes(one_step(RULES["block"], chain, q, target)):
        got[len(text) - 1] += probability
    for i in range(4):
        assert got[i] == pytest.approx(want[i], abs=ROUNDING)


def steps(rule: Rule, by_place: bool) -> Callable[[World], Text]:
    """Chains of two until three tokens are there; `by_place`: a token's own address when drafted."""
    target, q = table(7), table(8, 1.0)

    def run(world: World) -> Text:
        done: Text = ()
        while len(done) < 3:
            start, text, q_probs = len(done), done, []
            draws = world.stream(start, Purpose.DRAFT)
            for _ in range(2):
                if by_place:
                    draws = world.stream(len(text), Purpose.DRAFT)
                q_probs.append(q(text))
                text = (*text, draw(q_probs[-1], draws))  # type: ignore[arg-type]
            tree = Tree.chain(text[start:], np.stack(q_probs))
            rng = lambda b, d, start=start: world.stream(start + d, Purpose.ACCEPT)
            found = accept([tree], [target_probs_of(tree, target, done)], rng, [rule])  # type: ignore[arg-type]
            done = (*done, *found.tokens[0])
        return done

    return run


@pytest.mark.parametrize("rule", SAMPLED_RULES.values(), ids=SAMPLED_RULES)
def test_the_joint_law_of_several_steps(rule: Rule) -> None:
    target = table(7)
    joint = joint_probs(Outcomes(steps(rule, by_place=False)), target, 3)
    np.testing.assert_allclose(joint, text_probs(target, V, 3), atol=ROUNDING)


def test_block_wants_drafts_that_are_new_in_each_step() -> None:
    """Addressed by each token's own place, a refused token's number comes back: that is lossy."""
    target = table(7)
    want = text_probs(target, V, 3)
    joint = joint_probs(Outcomes(steps(RULES["token"], by_place=True)), target, 3)
    np.testing.assert_allclose(joint, want, atol=ROUNDING)
    joint = joint_probs(Outcomes(steps(RULES["block"], by_place=True)), target, 3)
    assert np.abs(joint - want).max() > 1e-3
