"""What the steps of requests did, for a while after they are over."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from fastslow.engine.core.request import StepNotes
from fastslow.handle import RequestHandle

MOST = 256  # requests


class TraceLog:
    """The traces of the last requests that asked for one."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._kept: OrderedDict[str, Sequence[StepNotes]] = OrderedDict()

    def keep(self, id: str, handle: RequestHandle) -> None:
        """A request is over, or about to be; its answer is let go of."""
        if traces := handle.step_traces:
            self._kept.pop(id, None)
            self._kept[id] = traces
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def of(self, id: str, running: RequestHandle | None) -> dict[str, Any] | None:
        """What a request did in its steps, for each of its answers; None: nothing was noted."""
        traces = running.step_traces if running is not None else self._kept.get(id)
        if not traces:
            return None
        choices = [{"index": i, **trace.to_dict()} for i, trace in enumerate(traces)]
        return {"id": id, "running": running is not None, "choices": choices}
