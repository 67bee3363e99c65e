"""What is noted beside figures: the machine, the versions, and who else was running."""

from __future__ import annotations

import os
from pathlib import Path

CONTENDED = 0.05  # others may take this share of the machine before a sample is marked
LEAST = 50  # ticks, on each processor, that make a share worth telling
STAT, OWN = Path("/proc/stat"), Path("/proc/self/stat")


class Watch:
    """Time on the processors from here to `others`. Linux only; elsewhere nothing is known."""

    def __init__(self) -> None:
        self._before = _ticks()

    def others(self) -> float | None:
        """Share of the machine that other processes, and other machines on it, took. None if
        that is unknown, as it is over less than half a second: the system counts in hundredths."""
        after = _ticks()
        if self._before is None or after is None:
            return None
        total, busy, own = (b - a for a, b in zip(self._before, after))
        long = total >= LEAST * (os.cpu_count() or 1)
        return max(0, busy - own) / total if long else None


def _ticks() -> tuple[int, int, int] | None:
    """So far of everything, of what was busy, and of this process with all its threads."""
    try:
        line = STAT.read_text("utf-8").partition("\n")[0]
        mine = OWN.read_text("utf-8").rpartition(")")[2].split()  # a name may hold blanks
    except OSError:
        return None
    user, nice, system, idle, wait, hard, soft, steal = map(int, line.split()[1:9])
    busy = user + nice + system + hard + soft + steal
    return busy + idle + wait, busy, int(mine[11]) + int(mine[12])
