"""The limit of the time that drafting may lose: a budget for every request, counted in plain steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fastslow.engine.types import StepTiming
from fastslow.policies.speculation.backoff import ByKey, RunningMean
from fastslow.policies.speculation.tuning import TUNING, SpeculationTuning


@dataclass(slots=True)
class SharedLossBudget:
    """Loss allowance of new requests of one memory key, in batches of about one size: by what its latest drafts saved
    and lost. left: plain steps, 0 to `most`."""

    left: float
    most: float

    @property
    def level(self) -> float:
        """From 0 to 2. Time alone refills it to `first_level`, and drafts that save time to 2."""
        return 2 * self.left / self.most


@dataclass(slots=True)
class RequestLossBudget:
    """The loss budget of one request. Once it is spent, drafting pauses until some of it is refilled.

    Attributes:
        left: plain steps that its drafts may still lose.
        resume_at: what must be left before drafting goes on after a pause.
        asked, nodes, accepted: of this step: whether its drafter was asked, nodes that ran, nodes accepted.
    """

    shared: SharedLossBudget
    tuning: SpeculationTuning
    left: float
    resume_at: float = field(init=False)
    paused: bool = field(init=False)
    asked: bool = False
    nodes: int = 0
    accepted: int = 0

    def __post_init__(self) -> None:
        self.paused = self.left <= 0
        self.resume_at = self.tuning.resume_loss

    def charge(self, cost: float) -> None:
        """A step is over that took the request so many plain steps longer than a plain one."""
        tuning, shared, gained = self.tuning, self.shared, self.accepted - cost
        # what was gained is kept, so that a few dear drafts which fail do not stop those that pay
        most = max(tuning.most_loss, tuning.kept_drafts * cost, self.left)
        self.left = min(self.left + shared.level * tuning.loss_refill + gained, most)
        if shared.level < tuning.first_level:
            shared.left += tuning.shared_refill
        shared.left = min(max(shared.left + gained, 0.0), shared.most)
        # half of what the step took: another one like it would overspend by far
        if self.left <= max(0.0, cost / 2):
            if not self.paused:
                self.resume_at = min(max(tuning.resume_loss, cost), tuning.most_loss)
            self.paused = True
        elif self.left >= self.resume_at:
            self.paused = False


class LossBudgets:
    """The loss budgets of all requests, charged by what steps really took.

    A step with drafts takes longer than a plain one. Its requests are charged for that: each for the nodes that it ran
    (all whose drafting is not paused, where none ran), and for the time of drafting if its drafter was asked. Every
    accepted token is credited, and a small part of every step besides. How much a new request may lose, and how large
    that part is, depend on the shared budget of its memory key. So where drafts pay, bad luck does not stop them at
    once. Where they do not, few requests try them, and none for long.

    Whether a step drafts depends on earlier steps alone, never on tokens that are drawn in it.
    """

    def __init__(self, tuning: SpeculationTuning = TUNING) -> None:
        self._tuning = tuning
        self._shared = ByKey[dict[int, SharedLossBudget]](dict)
        self._drafting = RunningMean(0.0, tuning.draft_memory)
        self._step: list[RequestLossBudget] = []

    def open(self, running: int, key: str | None = None) -> RequestLossBudget:
        """Return the budget of a new request, which runs in a batch of this many."""
        of_key = self._shared.of(key)
        if (shared := of_key.get(running.bit_length())) is None:
            most = running * self._tuning.most_shared_loss
            shared = of_key[running.bit_length()] = SharedLossBudget(
                most / 2 * self._tuning.first_level, most
            )
        return RequestLossBudget(shared, self._tuning, shared.level * self._tuning.first_loss)

    @property
    def drafting(self) -> float:
        """Seconds that drafting usually takes in a step; infinite where nothing is known of it."""
        return self._drafting.value if self._drafting.count else math.inf

    def take(self, budget: RequestLossBudget) -> None:
        """The request of this budget was part of the step."""
        self._step.append(budget)

    def note(self, running: int, step: StepTiming, plain: float, usual: float) -> None:
        """A step of this many requests is over. plain: seconds of a step of them without drafts. usual: of a step of
        this many rows: a time far from it was a delay. Steps that read prompts are not counted."""
        budgets, self._step = self._step, []
        if not step.pure:
            return
        nodes, asked = step.rows - running, sum(budget.asked for budget in budgets)
        slack = self._tuning.step_slack
        longer = min(max(step.seconds, usual / slack), usual * slack) / plain - 1
        drafting = min(step.drafting, self._tuning.held_up * self.drafting)
        # a drafter that rested has nothing to say at first: that takes hardly any time
        least = self._tuning.free_node * plain
        if asked and (step.drafting >= least or not self._drafting.count):
            self._drafting.add_time(max(step.drafting, least), self._tuning.held_up)
        active = sum(not budget.paused for budget in budgets)
        for budget in budgets:
            if nodes:
                cost = running * longer * budget.nodes / nodes
            else:  # what a drafter costs besides, as by the features that it reads
                cost = 0.0 if budget.paused else running * longer / active
            if budget.asked:
                cost += running * drafting / plain / asked
            budget.charge(cost)
