from __future__ import annotations

import random

import torch


class Threads:
    """Chooses torch's thread count by measured speed.

    On a shared machine a matmul waits for its slowest thread, so fewer threads can be faster
    while other work runs. Every few steps another count is tried.

    Args:
        most: the largest count to use.
        every: mean number of steps between trials of another count.
    """

    def __init__(self, most: int, every: int = 8) -> None:
        self.speeds: dict[int, float | None] = dict.fromkeys(range(1, most + 1))
        self.every = every
        self.random = random.Random(0)
        self.count = most

    def choose(self) -> int:
        """Sets and returns the count for the next step."""
        unknown = [count for count, speed in self.speeds.items() if speed is None]
        if unknown:
            self.count = unknown[-1]
        elif self.random.random() < 1 / self.every:
            self.count = self.random.choice(list(self.speeds))
        else:
            self.count = max(self.speeds, key=lambda count: self.speeds[count] or 0.0)
        torch.set_num_threads(self.count)
        return self.count

    def record(self, speed: float) -> None:
        """Takes the speed (any unit) of the step just run."""
        known = self.speeds[self.count]
        self.speeds[self.count] = speed if known is None else 0.5 * (known + speed)
