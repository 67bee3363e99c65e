"""What runs, by the ids that clients know: to cancel it, to stop its thought, to see its trace."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastslow.serve.api.caller import Caller

REMEMBERED = 1000  # of those that are over, for their traces


@dataclass(slots=True)
class Started:
    """A request: whose it is, and what the engine was asked for it."""

    who: Caller
    asks: list[str]


class Requests:
    """The answer's id and the header's each find a request, for its own caller alone."""

    def __init__(self) -> None:
        self._running: dict[str, Started] = {}
        self._over: OrderedDict[str, Started] = OrderedDict()

    @contextmanager
    def running(self, ids: list[str], asks: list[str], who: Caller) -> Iterator[None]:
        """While a request runs. An id that runs already keeps its meaning."""
        started = Started(who, asks)
        own = [id for id in ids if id not in self._running]
        self._running.update(dict.fromkeys(own, started))
        try:
            yield
        finally:
            for id in own:
                del self._running[id]
                self._over[id] = started
                self._over.move_to_end(id)
            while len(self._over) > REMEMBERED:
                self._over.popitem(last=False)

    def find(self, id: str, who: Caller) -> list[str]:
        """What the engine knows a request by; nothing where the caller has none of this id."""
        started = self._running.get(id) or self._over.get(id)
        if started is None or started.who.name != who.name:
            return []
        return started.asks
