"""The processes of a Ray cluster that a test has started."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path

from fastslow.serve.ray.cluster import Cluster


class KeptCluster(Cluster):
    """For several deployments, one after the other: their ends do not end it."""

    _opened = False

    async def open(self, environment: Mapping[str, str] | None = None) -> None:
        if not self._opened:
            self._opened = True
            await super().open(environment)

    async def close(self) -> None:
        """Nothing; see `end`."""

    async def end(self) -> None:
        await super().close()


def replica_pids(application: str = "fastslow") -> list[int]:
    """The processes of replicas in the cluster of this process."""
    return [
        pid
        for pid in descendants(os.getpid())
        if f"ServeReplica:{application}:engine" in (_command(pid) or "")
    ]


def living(pids: Iterable[int]) -> list[int]:
    """Those that live; a zombie does not."""
    return [pid for pid in pids if _state(pid) not in ("", "Z")]


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


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None
