"""The part of its drafts that a step runs: no decision may see what was sampled in it. Exact sums, no samples."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from accept_tools import Make, NextProbs, Text, V, chain, joint_probs, one_step, repeats, table
from coins import Outcomes, Stream
from distributions import text_probs
from schedule_tools import request as new_request

from fastslow.draft.grammar_filter import filter_by_grammar
from fastslow.engine.core.latency_budget import RunEverything
from fastslow.engine.core.request import Request
from fastslow.engine.core.step.drafts import cut_drafts
from fastslow.engine.params import SamplingParams, Speculation
from fastslow.engine.sampling.accept.accept import RULES
from fastslow.engine.types import Floats, Tree
from fastslow.policies.speculation.planner import FixedLength, nodes_that_pay
from fastslow.policies.speculation.step_cost import StepCostCurve

# the second row costs as much as the first, the others next to nothing: short drafts do not pay, long ones do
CONCAVE = StepCostCurve([1, 2, 3, 4, 8], [1.0, 2.0, 2.01, 2.02, 2.03])
CHANCE = 0.6


class Steps(RunEverything):
    """A cost model of one curve."""

    def nodes_that_pay(self, batch: object, survival: Any, sizes: Sequence[int], rows: int) -> list[list[int]]:
        return nodes_that_pay(survival, sizes, rows, CONCAVE)


class Adaptive(FixedLength):
    def survival(self, tree: Tree) -> list[float]:  # type: ignore[override]
        return [CHANCE**depth for depth in tree.depths]


class Rules:
    """A grammar of three tokens: 1 never follows 0, and after 2 come 0 and 0 for certain."""

    walks_slowly = False

    def allowed(self, text: Text) -> list[bool]:
        if (certain := self.certain(text)) is not None:
            return [x == certain for x in range(V)]
        return [True, text[-1:] != (0,), True]

    def certain(self, text: Text) -> int | None:
        return 0 if 2 in text[-2:] else None

    def fits(self, tokens: Sequence[int], drafted: Sequence[int]) -> bool:
        text = (*tokens, *drafted)
        return all(self.allowed(text[:i])[text[i]] for i in range(len(tokens), len(text)))

    def ahead(self, tokens: Sequence[int], drafted: Sequence[int], most: int) -> list[int]:
        text = (*tokens, *drafted)
        found: list[int] = []
        while len(found) < most and (token := self.certain((*text, *found))) is not None:
            found.append(token)
        return found

    def at(self, tokens: Sequence[int], drafted: Sequence[int]) -> Any:
        raise AssertionError("the law is computed below")


def request(**fields: Any) -> Request:
    """Before its first token."""
    hot = SamplingParams(temperature=1.0)
    fields = {"speculation": Speculation(drafter="model"), "policy": Adaptive(4), **fields}
    return new_request(0, prompt=0, room=20, params=hot, grammar=Rules(), **fields)


def under(rules: Rules, law: NextProbs) -> NextProbs:
    def masked(text: Text) -> Floats:
        p_V: Floats = law(text) * np.array(rules.allowed(text), dtype=np.float32)
        masked_V: Floats = p_V / p_V.sum()
        return masked_V

    return masked


Admit = Callable[[Sequence[Request], Sequence[Tree], Sequence[int], int, Any], list[Tree]]


def law_of_a_step(rule: str, make: Make, decide: Admit) -> np.ndarray:
    rules = Rules()
    target = under(rules, table(1))

    def drafted(q: NextProbs, draws: Stream) -> Tree:
        one = request()
        (tree,) = decide([one], [filter_by_grammar(make(q, draws), one, 6)], [3], 1, Steps())
        return tree

    def rows(text: Text) -> Floats:
        return target(text) if rules.fits((), text) else table(3)(())

    step = one_step(RULES[rule], drafted, table(2, 1.0), rows)
    return joint_probs(Outcomes(step), target, 4) - text_probs(target, V, 4)


@pytest.mark.parametrize("make", [chain, repeats])
@pytest.mark.parametrize("rule", ["token", "block"])
def test_what_runs_of_a_sampled_draft_does_not_change_the_law(rule: str, make: Make) -> None:
    assert np.abs(law_of_a_step(rule, make, cut_drafts)).max() < 2e-6


def test_the_sums_notice_a_decision_that_sees_what_was_drawn() -> None:
    def seeing(
        ready: Sequence[Request], trees: Sequence[Tree], planned: Sequence[int], rows: int, _: Any
    ) -> list[Tree]:
        survival = [one.survival(tree) for one, tree in zip(ready, trees)]
        kept = nodes_that_pay(survival, [len(tree.tokens) for tree in trees], rows, CONCAVE)
        return [tree.only(nodes) for tree, nodes in zip(trees, kept)]

    assert np.abs(law_of_a_step("token", chain, seeing)).max() > 1e-2


def test_certain_tokens_run_after_a_sampled_chain_where_they_pay() -> None:
    one, short = request(), request(policy=FixedLength(4))
    tree = filter_by_grammar(Tree.chain([1, 2], np.full((2, V), 1 / V, np.float32)), one, 6)
    assert list(tree.tokens) == [1, 2, 0, 0]
    assert [len(t.tokens) for t in cut_drafts([one], [tree], [6], 1, Steps())] == [4]
    assert cut_drafts([short], [tree], [6], 1, Steps()) == [tree]
