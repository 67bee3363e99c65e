"""The processes of a Ray cluster that a test has started."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def replica_pids() -> list[int]:
    """The processes of replicas in the cluster of this process."""
    return [
        pid
        for pid in descendants(os.getpid())
        if "ServeReplica:fastslow:engine" in (_command(pid) or "")
    ]


def descendants(pid: int) -> list[int]:
    """All processes that one has started, and those that these have."""
    parents = {child: parent for child in _all() if (parent := _parent(child)) is not None}

    def below(child: int) -> bool:
        while child in parents:
            child = parents[child]
            if child == pid:
                return True
        return False

    return sorted(child for child in parents if below(child))


def kill(pid: int) -> None:
    """End a process as the loss of its machine does."""
    os.kill(pid, signal.SIGKILL)


def _all() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def _command(pid: int) -> str | None:
    try:
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    except OSError:
        return None


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None
