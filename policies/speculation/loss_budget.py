"""The limit of what drafting may lose: every request has an account, counted in plain steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fastslow.engine.types import StepTiming
from fastslow.policies.speculation.backoff import ByKey, RunningMean
from fastslow.policies.speculation.tuning import TUNING, SpeculationTuning


@dataclass(slots=True)
class LossPool:
    """Gains and losses of one memory key's latest drafts, in batches of about one size. left: plain steps that new
    requests may lose, 0 to `most`."""

    left: float
    most: float

    @property
    def full(self) -> float:
        """0 to 2; 1: time alone fills it so far."""
        return 2 * self.left / self.most


@dataclass(slots=True)
class LossAccount:
    """A request's account. A request whose drafts lost what it had rests: it is not drafted for until it earned some.

    Attributes:
        left: plain steps that its drafts may still lose.
        trial: what must be left before a request that rests is drafted for again.
        asked, nodes, accepted: of this step: whether its drafter was asked, nodes that ran, nodes accepted.
    """

    pool: LossPool
    tuning: SpeculationTuning
    left: float
    trial: float = field(init=False)
    resting: bool = field(init=False)
    asked: bool = False
    nodes: int = 0
    accepted: int = 0

    def __post_init__(self) -> None:
        self.resting = self.left <= 0
        self.trial = self.tuning.trial_loss

    def settle(self, cost: float) -> None:
        """A step is over that took the request this many plain steps more than a plain one."""
        tuning, pool, gained = self.tuning, self.pool, self.accepted - cost
        self.left = min(self.left + pool.full * tuning.loss_share + gained, tuning.most_loss)
        if pool.full < 1:
            pool.left += tuning.pool_share
        pool.left = min(max(pool.left + gained, 0.0), pool.most)
        # half of what the step took: another one like it would leave it far below nothing
        if self.left <= max(0.0, cost / 2):
            if not self.resting:
                self.trial = min(max(tuning.trial_loss, cost), tuning.most_loss)
            self.resting = True
        elif self.left >= self.trial:
            self.resting = False


class LossBudget:
    """Holds all accounts to what steps took, with all overhead.

    A step with drafts takes longer than a plain one. The requests pay for that by the nodes that they ran (all that do
    not rest, where none ran), and for the time of drafting where they were asked; they earn the tokens that were
    accepted, and a small share of every step besides. What a new request may lose, and that share, follow the pool of
    its memory key, which holds what all of them gained and lost lately: so where drafts pay, bad luck does not stop
    them at once, and where they do not, few requests try them, and none tries them for long.

    Whether a step drafts depends on earlier steps alone, never on tokens that are drawn in it.
    """

    def __init__(self, tuning: SpeculationTuning = TUNING) -> None:
        self._tuning = tuning
        self._pools = ByKey[dict[int, LossPool]](dict)
        self._drafting = RunningMean(0.0, tuning.draft_memory)
        self._step: list[LossAccount] = []

    def open(self, running: int, key: str | None = None) -> LossAccount:
        """The account of a new request, which runs in a batch of this many."""
        pools = self._pools.of(key)
        if (pool := pools.get(running.bit_length())) is None:
            most = running * self._tuning.most_pooled
            pool = pools[running.bit_length()] = LossPool(most / 2, most)
        return LossAccount(pool, self._tuning, pool.full * self._tuning.first_loss)

    @property
    def drafting(self) -> float:
        """Seconds that drafting usually takes in a step; infinite where nothing is known of it."""
        return self._drafting.value if self._drafting.count else math.inf

    def take(self, account: LossAccount) -> None:
        """The account's request was part of this step."""
        self._step.append(account)

    def note(self, running: int, step: StepTiming, plain: float, usual: float) -> None:
        """A step of this many requests is over. plain: seconds of a step of them without drafts. usual: of a step of
        this many rows: a time far from it was a delay. Steps that read prompts are not counted."""
        accounts, self._step = self._step, []
        if not step.pure:
            return
        nodes, asked = step.rows - running, sum(account.asked for account in accounts)
        slack = self._tuning.step_slack
        longer = min(max(step.seconds, usual / slack), usual * slack) / plain - 1
        drafting = min(step.drafting, self._tuning.held_up * self.drafting)
        if asked:
            self._drafting.add_time(step.drafting, self._tuning.held_up)
        awake = sum(not account.resting for account in accounts)
        for account in accounts:
            if nodes:
                cost = running * longer * account.nodes / nodes
            else:  # what a drafter costs besides, as by the features that it reads
                cost = 0.0 if account.resting else running * longer / awake
            if account.asked:
                cost += running * drafting / plain / asked
            account.settle(cost)
