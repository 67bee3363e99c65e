"""How a step grows with the answers in it, learned from what replicas report."""

from __future__ import annotations

from fastslow.serve.engines.routing.settings import RoutingSettings

MEMORY = 1000.0  # reports over which older ones fade: minutes of a few replicas
# Squared answers: so far must the counts of the reports have spread before these outweigh what was assumed,
# as ten reports do that lie ten answers beside their mean.
EVIDENCE = 1000.0
LEAST_GROWTH = (
    0.001  # of a step, for each answer: it is never free, whatever chance made of the reports
)


class StepGrowth:
    """A straight line through seconds of steps over answers in them, of all replicas.

    What one more answer adds differs a hundredfold: a tenth of a step and more on small machines, less than
    a hundredth where a step reads so many weights that its answers hardly count. Before the reports tell,
    the small machine is assumed, which spreads requests more. Never more than a step's equal share
    is believed: a step without answers takes no less than nothing.
    """

    def __init__(self, settings: RoutingSettings) -> None:
        self._settings = settings
        self._count = 0.0  # of reports, as far as they have not faded
        self._answers = 0.0  # means
        self._seconds = 0.0
        self._spread = 0.0  # sums of products of what lies beside the means
        self._common = 0.0

    @property
    def known(self) -> bool:
        """Whether reports tell more than was assumed."""
        return self._spread >= EVIDENCE

    @property
    def seconds(self) -> float:
        """That one more answer adds to a step; infinity before any report."""
        if not self._count:
            return float("inf")
        assumed = self._settings.answer_growth * self._seconds
        share = self._seconds / self._answers
        found = (self._common + EVIDENCE * min(assumed, share)) / (self._spread + EVIDENCE)
        return max(LEAST_GROWTH * self._seconds, min(found, share))

    def note(self, answers: int, seconds: float) -> None:
        """A replica reported steps with so many answers in them."""
        if not answers or not seconds:
            return
        fade = 1.0 - 1.0 / MEMORY
        self._count = fade * self._count + 1.0
        aside, late = answers - self._answers, seconds - self._seconds
        self._answers += aside / self._count
        self._seconds += late / self._count
        self._spread = fade * self._spread + aside * (answers - self._answers)
        self._common = fade * self._common + aside * (seconds - self._seconds)

    def answers_within(self, seconds: float) -> float:
        """How many answers a step of so many seconds has; 0 where it does not have one."""
        return max(0.0, self._answers + (seconds - self._seconds) / self.seconds)
