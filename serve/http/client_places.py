"""Limit on the connections of clients, and who gives one up where files are scarce."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

from loguru import logger

from fastslow.admission import KEPT, FairPlaces
from fastslow.engine.fair_table import FairTable

OWN_FILES = 64  # that the server itself needs, or half of all
UNLIMITED = 10**9
SCARCE = (
    "clients have {} connections, the most here (ulimit -n): unused ones are closed from now on"
)


class ClientPlaces:
    """The connections that are open, by the share of their address. `unused` holds those that no whole request is on,
    with what closes them. Where all places are taken, the share with most of these loses the oldest. The last quarter
    is for shares with few: one that has more takes the place of its own, or gets none. most: places; None = as many
    files as the process may open, but for its own."""

    def __init__(self, most: int | None = None) -> None:
        files = os.sysconf("SC_OPEN_MAX") if hasattr(os, "sysconf") else 0
        usual = max(files // 2, files - OWN_FILES) if files > 0 else UNLIMITED
        most = usual if most is None else most
        self._places = FairPlaces(most, most // KEPT)
        self.unused: FairTable[object, Callable[[], None]] = FairTable(math.inf)
        self._said = False

    def enter(self, share: str | None, connection: object, close: Callable[[], None]) -> None:
        """A client connects. It may be closed at once."""
        most = self._places.open_to(share, 1)
        if self._places.taken >= most:
            if not self._said:
                self._said = True
                logger.warning(SCARCE, most)
            others = () if most == self._places.most else [share]
            for one in self.unused.give_up(others) or [close]:
                one()
        self._places.take(share, 1)
        self.unused.put(share, connection, close)

    def leave(self, share: str | None, connection: object) -> None:
        """It is gone."""
        self.unused.pop(share, connection)
        self._places.take(share, -1)
