"""A trace of one answer: what each of its steps did.

A trace holds its request's tokens, and of the others no more than how many rows they brought.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from typing import Any

from fastslow.engine.model.routed_units import RoutedUnits

FIRST, LAST = 500, 500  # steps that are kept, from the beginning and from the end


class StepTrace:
    """The steps of one answer, of all requests that made it. The engine's thread writes it, and any thread may read
    it meanwhile. units: what the model's modes may run fewer of."""

    def __init__(self, units: RoutedUnits) -> None:
        self.units = units
        self.planned: dict[str, Any] = {"planned": 0, "cut": {}}  # of the step that runs
        self._first: list[str] = []
        self._last = deque[str](maxlen=LAST)  # as text, which takes a quarter of the memory
        self._count = 0

    def plan(self, planned: int, fits: int, own: int, left: int, nodes: int) -> None:
        """A step's draft: nodes that its policy wanted, that fit the latency targets, and its share of the step, that
        the text's longest length leaves, and that may be drafted, for which free pages count, too."""
        self.planned = {"planned": planned, "cut": {}}
        self.cut("latency_target", planned - fits)
        self.cut("share", fits - own)
        self.cut("max_len", own - left)
        self.cut("pages", min(own, left) - nodes)

    def cut(self, why: str, nodes: int) -> None:
        """Nodes that were not verified."""
        if nodes > 0:
            self.planned["cut"][why] = nodes

    def add(self, step: Mapping[str, Any]) -> None:
        """A step that is over, as plain JSON values."""
        line = json.dumps(step, separators=(",", ":"))
        (self._first if len(self._first) < FIRST else self._last).append(line)
        self._count += 1
        self.planned = {"planned": 0, "cut": {}}

    def to_dict(self) -> dict[str, Any]:
        """The steps as plain JSON values, and how many in the middle were left out."""
        count = self._count  # first, for steps may come meanwhile
        steps = [json.loads(step) for step in (*list(self._first), *self._last.copy())]
        return {"steps": steps, "left_out": max(0, count - len(steps))}
