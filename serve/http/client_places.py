"""How many connections clients may have, and who gives one up where files are scarce."""

from __future__ import annotations

import time
from typing import Protocol

from loguru import logger

from fastslow.admission import KEPT, FairPlaces
from fastslow.engine.fair_table import FairTable

OWN_FILES = 64  # that the server itself needs, or half of all
SAID = 60.0  # seconds between two lines of the log
UNLIMITED = 10**9


class Closable(Protocol):
    """A connection."""

    def close_unused(self) -> None: ...


class ClientPlaces:
    """The connections that are open, by the share of their address. A connection is unused while no whole request is on
    it. Where all places are taken, the share with most unused connections loses the oldest of them. The last quarter is
    for shares with few: one that has more takes the place of its own, or gets none. most: places; None = as many files
    as the process may open, but for its own."""

    def __init__(self, most: int | None = None) -> None:
        most = _open_files() if most is None else most
        self._places = FairPlaces(most, most // KEPT)
        self._unused: FairTable[Closable, Closable] = FairTable(UNLIMITED)
        self._said = -SAID

    def enter(self, share: str | None, connection: Closable) -> None:
        """A client connects. It may be closed at once."""
        places = self._places
        if places.taken >= (most := places.open_to(share, 1)):
            self._say(most)
            own = most < places.most and places.taken < places.most
            for one in self._unused.give_up([share] if own else ()) or [connection]:
                one.close_unused()
        places.take(share, 1)
        self._unused.put(share, connection, connection)

    def use(self, share: str | None, connection: Closable) -> None:
        """A whole request is on it."""
        self._unused.pop(share, connection)

    def rest(self, share: str | None, connection: Closable) -> None:
        """Nothing is on it now."""
        self._unused.put(share, connection, connection)

    def leave(self, share: str | None, connection: Closable) -> None:
        self._unused.pop(share, connection)
        self._places.take(share, -1)

    def _say(self, most: int) -> None:
        if (now := time.monotonic()) - self._said >= SAID:
            self._said = now
            logger.warning(
                "clients have {} connections, the most here: unused ones are closed", most
            )


def _open_files() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return UNLIMITED
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return UNLIMITED if most == resource.RLIM_INFINITY else max(most // 2, most - OWN_FILES)
