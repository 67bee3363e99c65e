"""What drafting brings and takes in a plan."""

from __future__ import annotations

from dataclasses import dataclass

from fastslow.engine.params import nearest
from fastslow.engine.plan.step import Setting, Terms
from fastslow.engine.plan.work import Work

DRAFTERS = {
    "mtp": 1,
    "free": 0,
}  # decoder layers that a drafted token runs, with the head behind them


@dataclass(frozen=True, slots=True)
class Drafting:
    """A drafter's cost and its acceptance.

    Attributes:
        acceptance: chance that a drafted token is accepted if those before it were, 0..1.
        drafter: "mtp" runs one layer of the model and its head for each token, "free" nothing, as
            drafts looked up in text.
    """

    acceptance: float
    drafter: str = "mtp"

    @classmethod
    def of(cls, acceptance: float, drafter: str) -> Drafting:
        """acceptance: per position, below 1; from 1 on tokens per step t of long drafts, which are
        1 / (1 - a), so that a = 1 - 1/t.

        Raises:
            ValueError: a negative acceptance, an unknown drafter.
        """
        if not acceptance >= 0:  # nor nan
            raise ValueError(f"acceptance={acceptance} must be a number of at least 0")
        if drafter not in DRAFTERS:
            raise ValueError(f"drafter={drafter!r} is unknown{nearest(drafter, DRAFTERS)}")
        return cls(acceptance if acceptance < 1 else 1 - 1 / acceptance, drafter)

    def tokens(self, nodes: int) -> float:
        """Mean tokens of a step with so many drafted: 1 + a + a^2 + ... (Leviathan et al., arXiv
        2211.17192)."""
        return float(sum(self.acceptance**i for i in range(nodes + 1)))

    def step(self, setting: Setting, requests: int, nodes: int, context: float) -> Terms:
        """A step that drafts `nodes` tokens for each request, one after the other, and verifies them."""
        verify = setting.decode(requests, nodes + 1, context)
        if not nodes or not DRAFTERS[self.drafter]:
            return verify
        layer: Work = setting.work.only(DRAFTERS[self.drafter])
        return verify + setting.of(layer).decode(requests, 1, context) * nodes
