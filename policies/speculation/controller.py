"""The speculation controller: how far every request drafts, with which drafters, and what is verified."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastslow.engine.params import Speculation
from fastslow.engine.types import PREDICTION, MarginalValue, Policy, RequestView, StepTiming
from fastslow.policies.speculation.acceptance import AcceptanceModel
from fastslow.policies.speculation.backoff import ByKey, RunningMean
from fastslow.policies.speculation.loss_budget import LossBudgets
from fastslow.policies.speculation.planner import AdaptiveLength, FixedLength, nodes_that_pay
from fastslow.policies.speculation.selection import AdaptiveSelection
from fastslow.policies.speculation.step_cost import StepCostCurve, StepCosts
from fastslow.policies.speculation.tuning import TUNING, SpeculationTuning


class SpeculationController:
    """The controller of an engine: all that is learnt about steps and drafts, and the policies that use it.

    In a step, every request's policy plans a budget of nodes, from the `AcceptanceModel` of its drafter,
    the `StepCosts` and what its loss budget allows; an `AdaptiveSelection` asks those of several
    drafters that pay; `nodes_that_pay` cuts the drafts to what pays over the whole batch; `note` and the
    policies' `record` learn from the result. `measure`: see `StepCosts`.
    """

    def __init__(
        self, measure: Callable[[int | None], StepCostCurve], tuning: SpeculationTuning = TUNING
    ) -> None:
        self._tuning = tuning
        self._costs = StepCosts(measure, tuning)
        self._budgets = LossBudgets(tuning)
        self._acceptance: dict[tuple[str, object], ByKey[AcceptanceModel]] = {}
        # steps since a prompt was read; below 1 they find a cold machine
        self._warm = tuning.cold_steps
        # seconds that a step takes more where a drafter was asked before it
        self._after_ask = RunningMean(0.0, tuning.after_ask_memory)
        self.drafted = self._costs.drafted
        self.draft_seconds = self._costs.pass_seconds

    def policy(
        self,
        settings: Speculation,
        drafter: object,
        predicted: bool = False,
        memory_key: str | None = None,
        part: str = "",
    ) -> Policy:
        """For a new request. Requests with the same drafter and memory key share its acceptance model, but
        for those that have a prediction: what is drafted from that costs nothing, and is accepted more
        often. part: of the answers, whose acceptance is measured by itself."""
        if settings.drafter == "off":
            return FixedLength(0)
        if settings.nodes is not None:
            return FixedLength(settings.nodes)
        drafter = (drafter, PREDICTION) if predicted else drafter
        each = self._acceptance.setdefault(
            (part, drafter), ByKey(lambda: AcceptanceModel(self._tuning))
        )
        known = each.of(memory_key)
        return AdaptiveLength(drafter, known, self._costs, self._budgets, self._tuning)

    def forget(self, drafter: object) -> None:
        """A drafter is gone. Any thread may say so."""
        gone = drafter, (drafter, PREDICTION)
        for key in [key for key in list(self._acceptance) if key[1] in gone]:
            self._acceptance.pop(key, None)
        self._costs.forget(drafter)

    def selection(self, drafters: int, settings: Speculation) -> AdaptiveSelection:
        """For settings that name several drafters; costs count where the length is not fixed."""
        value = self.value if settings.nodes is None else None
        return AdaptiveSelection(drafters, value, self._tuning)

    def value(self, batch: Sequence[RequestView]) -> MarginalValue:
        """The gain of one more token and the cost of one more row in a step of these requests."""
        return self._costs.value(_most_groups(batch), len(batch))

    def seconds(self, groups: int | None, rows: int) -> float:
        """Seconds of a step with `rows` rows, none of which runs more than `groups` groups."""
        return self._costs.curve(groups).seconds(rows)

    def nodes_that_pay(
        self,
        batch: Sequence[RequestView],
        survival: Sequence[Sequence[float] | None],
        sizes: Sequence[int],
        rows: int,
    ) -> list[list[int]]:
        """For each request, the nodes to run; `rows` are the step's other rows."""
        curve = self._costs.curve(_most_groups(batch))
        return nodes_that_pay(survival, sizes, rows, curve)

    def note(self, batch: Sequence[RequestView], step: StepTiming) -> None:
        """Learn what a step took, and what it made; nothing where nobody asked yet what steps take."""
        if not self._costs.asked(groups := _most_groups(batch)):
            return
        running, curve = len(batch), self._costs.curve(groups)
        plain, usual = curve.seconds(running), curve.seconds(step.rows)
        if step.pure:
            self._warm += 1
        elif self._warm >= self._tuning.cold_steps:
            self._warm = -self._tuning.cold_steps
        if step.pure and self._warm <= 0:
            # what drafts take of a slow step is what they usually take
            drafting = min(step.drafting, self._budgets.drafting)
            slow = step._replace(seconds=usual, drafting=drafting)
            self._budgets.note(running, slow, plain, usual)
            return
        self._budgets.note(running, step, plain, usual)
        # a step is slower after a drafter was asked, whatever its rows: weights left the caches, the clock is lower
        asked, single = step.drafting >= self._tuning.free_node * plain, step.rows == running
        if asked and single:
            most = self._tuning.most_after_ask * plain
            self._after_ask.add(min(step.seconds - plain, most))
            return
        seconds = step.seconds - asked * max(self._after_ask.value, 0.0)
        self._costs.note(groups, step.rows, seconds, step.pure and single)


def _most_groups(batch: Sequence[RequestView]) -> int | None:
    """In a step of several modes, the mode with most groups decides."""
    groups = [request.groups for request in batch]
    return None if None in groups else max(g for g in groups if g is not None)
