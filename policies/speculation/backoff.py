"""The wait before what did not pay is tried again, the running mean of the controller, and values by memory key."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Generic, TypeVar

T = TypeVar("T")
MIXED = frozenset[object]()  # stands for the key of what those of several keys did together
MOST_KEYS = 256  # memory keys for which something is learnt: the latest


@dataclass(slots=True)
class Backoff:
    """Waits some turns (steps, or phases of steps) before a try, and longer after every try that failed."""

    first: int  # turns between the first two tries
    most: float  # the longest wait between tries
    wait: int  # turns until the next try; 0 or less = now
    _patience: int = field(init=False)  # turns between the last try and the next

    def __post_init__(self) -> None:
        self.restart(self.wait)

    @property
    def due(self) -> bool:
        return self.wait <= 0

    def skip(self) -> None:
        """A turn is over."""
        self.wait -= 1

    def again(self, growth: float) -> None:
        """Wait for the next try `growth` times as long as before this one, `most` at most."""
        self._patience = max(self.first, math.ceil(min(growth * self._patience, self.most)))
        self.wait = self._patience

    def restart(self, wait: int) -> None:
        """Try after this many turns, and begin with short waits again: it pays, or everything changed."""
        self.wait = wait
        self._patience = min(wait, self.first)


@dataclass(slots=True)
class RunningMean:
    """The mean of the latest values."""

    value: float
    memory: float  # values after which older ones fade: each new value then weighs 1 / memory
    count: float = 0.0  # values seen, at most `memory`; a prior may count as some

    def add(self, value: float) -> None:
        self.count = min(self.count + 1, self.memory)
        self.value += (value - self.value) / self.count

    def add_time(self, seconds: float, held_up: float) -> None:
        """As `add`; a time counts as no more than `held_up` times the usual."""
        self.add(min(seconds, held_up * self.value) if self.count else seconds)


def common_key(keys: Collection[Hashable]) -> Hashable:
    """The one key of all, or MIXED: what several did together does not tell what each did."""
    return next(iter(keys)) if len({*keys}) == 1 else MIXED


class ByKey(Generic[T]):
    """A value for each memory key, of the latest keys: what the requests of a key show changes nothing for those of
    others. Any thread may ask. make: gives the value that a key begins with."""

    def __init__(self, make: Callable[[], T]) -> None:
        # of a key that two threads ask for at once, one value is made
        self._lock = threading.Lock()
        self._known = lru_cache(MOST_KEYS)(lambda key: make())

    def of(self, key: Hashable) -> T:
        """The value of a key."""
        with self._lock:
            return self._known(key)
