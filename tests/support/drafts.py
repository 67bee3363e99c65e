"""Drafts that surely run: the controllers that a test may have, and how much was drafted.

A test says `@pytest.mark.drafts(least, accepted, nodes)`: adaptive drafts have `nodes` nodes whatever steps take
(None: the test gives its own length or controller), and at least so many tokens are drafted and accepted.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from fastslow.engine.core.step_budget import StepBudget
from fastslow.engine.types import RequestView, StepTiming, Tree
from fastslow.policies.speculation.controller import SpeculationController
from fastslow.policies.speculation.planner import AdaptiveLength, FixedLength
from fastslow.policies.speculation.selection import FREE, AdaptiveSelection
from fastslow.policies.speculation.step_cost import StepCostCurve


def free_budget(patch: pytest.MonkeyPatch) -> None:
    """Let drafts have what their policies wish, whatever steps take."""
    patch.setattr(StepBudget, "nodes", lambda _, ready, wishes, by_share: list(wishes))


def fix_adaptive(patch: pytest.MonkeyPatch, nodes: int) -> None:
    """Adaptive drafts have this length, whatever else runs, and of several drafters each is asked. 0: they rest, as on a
    slow machine."""
    free_budget(patch)
    patch.setattr(AdaptiveLength, "plan", lambda *_: nodes)
    patch.setattr(AdaptiveLength, "survival", lambda *_: None)
    patch.setattr(AdaptiveSelection, "_asked", lambda _, drafter, batch, most, value: list(most))
    patch.setattr(AdaptiveSelection, "_value_of", lambda *_: FREE)


@contextmanager
def enough_drafts(patch: pytest.MonkeyPatch, least: int, accepted: int = 1, nodes: int | None = 5) -> Iterator[None]:
    """Hold the code inside to what the marker says. Engines in other processes are neither changed nor counted."""
    free_budget(patch)
    if nodes is not None:
        fix_adaptive(patch, nodes)
    found = [0, 0]

    def counted(record: Any) -> Any:
        def count(policy: object, tree: Tree, path: Sequence[int]) -> None:
            found[0] += len(tree.tokens)
            found[1] += len(path)
            record(policy, tree, path)

        return count

    for policy in (AdaptiveLength, FixedLength):
        patch.setattr(policy, "record", counted(policy.record))
    yield
    assert found[0] >= least and found[1] >= accepted, f"{found[0]} drafted, {found[1]} accepted"


class UntimedController(SpeculationController):
    """Adaptive lengths by acceptance alone: a step takes what the curve says, drafting takes no time, and as
    nothing is lost, no request rests."""

    def __init__(self, curve: StepCostCurve) -> None:
        super().__init__(lambda groups: curve)
        self.drafted = lambda *_: None

    def note(self, batch: Sequence[RequestView], step: StepTiming) -> None:
        """Nothing is learnt from it."""
