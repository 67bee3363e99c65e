"""The one running mean of the controller."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class RunningMean:
    """The mean of the latest values.

    Attributes:
        value: the mean.
        memory: values after which older ones fade: each new one then weighs 1 / memory.
        count: values seen, at most `memory`; a prior may count as some.
    """

    value: float
    memory: float
    count: float = 0.0

    def add(self, value: float) -> None:
        self.count = min(self.count + 1, self.memory)
        self.value += (value - self.value) / self.count

    def add_time(self, seconds: float, held_up: float) -> None:
        """As `add`; a time counts as no more than `held_up` times the usual."""
        self.add(min(seconds, held_up * self.value) if self.count else seconds)
