"""The law that every rule gives, by exact sums over all drafts and all draws, jointly over several tokens."""

import itertools
from collections.abc import Callable
from typing import Any

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


def certain(text: Text) -> Any:
    """As where a grammar leaves one token: its probabilities are not written out, and nothing is drawn."""
    return OneHot(2) if len(text) == 1 and text[0] != 1 else table(1)(text)


def failing(text: Text) -> Any:
    """Drafted rows without probabilities: an answer may come to such a node, and its step ends there."""
    return FailedRow(FloatingPointError("no numbers")) if 1 in text else table(1)(text)


@pytest.mark.parametrize("rows", [certain, failing])
@pytest.mark.parametrize("make", [chain, apart, chosen])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_joint_law_where_rows_are_certain_or_fail(rule: Rule, make: Make, rows: Callable[[Text], Any]) -> None:
    def target(text: Text) -> Floats:
        row = rows(text)
        hot: Floats = np.eye(V, dtype=np.float32)[2]
        return hot if isinstance(row, OneHot) else table(1)(text)

    outcomes = Outcomes(one_step(rule, make, table(2, 1.0), rows))
    assert rows is certain or all(1 not in text[:-1] for text, _ in outcomes)
    joint = joint_probs(outcomes, target, 4)
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


def test_block_accepts_as_much_of_a_chain_as_the_paper_says() -> None:
    """A beginning stays with probability p_i = min(p_(i-1) p/q, 1)."""
    target, q = table(3), table(4, 1.0)
    want = 0.0
    for text in (t for size in (1, 2, 3) for t in itertools.product(range(V), repeat=size)):
        drafted = kept = 1.0
        for i, x in enumerate(text):
            drafted *= float(q(text[:i])[x])
            kept = min(kept * float(target(text[:i])[x]) / float(q(text[:i])[x]), 1.0)
        want += drafted * kept
    assert mean_accepted(RULES["block"], chain, q, target) == pytest.approx(want, abs=ROUNDING)


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


@pytest.mark.parametrize(
    ("rule", "by_place", "exact"),
    [("token", False, True), ("block", False, True), ("token", True, True), ("block", True, False)],
)
def test_the_joint_law_of_several_steps(rule: str, by_place: bool, exact: bool) -> None:
    """Block wants drafts that are new in each step: by each token's own place, a refused token's number
    comes back."""
    joint = joint_probs(Outcomes(steps(RULES[rule], by_place)), table(7), 3)
    off = np.abs(joint - text_probs(table(7), V, 3)).max()
    assert off < ROUNDING if exact else off > 1e-3
