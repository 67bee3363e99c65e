"""Processes of replicas, and a Ray cluster, for tests."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from processes_served import free_port, wait_for

ROOT = Path(__file__).parents[2]


@dataclass
class StartedCluster:
    """A cluster of the tests, with the port at which it listens."""

    pid: int
    port: int
    environment: dict[str, str]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def engines(self, application: str = "fastslow") -> list[int]:
        """The processes of replicas."""
        title = f"ServeReplica:{application}:engine"
        return [pid for pid in living(descendants(self.pid)) if title in _command(pid)]

    def listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True


@contextmanager
def started_cluster() -> Iterator[StartedCluster]:
    """A cluster of this machine with three cores. It asks for the token of this process; see tests/serve/conftest.py."""
    scripts = Path(sys.executable).parent
    port = free_port()
    own = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "RAY_USAGE_STATS_ENABLED": "0"}
    where = tempfile.mkdtemp(prefix="ray")  # short: names of sockets are bounded
    words = [scripts / "ray", "start", "--head", "--block", "--num-cpus=3"]
    words += [f"--port={port}", f"--ray-client-server-port={free_port()}", f"--temp-dir={where}"]
    words += ["--node-ip-address=127.0.0.1", "--include-dashboard=false"]
    words += [f"--dashboard-agent-listen-port={free_port()}", "--object-store-memory=80000000"]
    process = subprocess.Popen(
        [str(word) for word in words], env={**os.environ, **own}, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        cluster = StartedCluster(process.pid, port, own)
        wait_for(cluster.listens)
        yield cluster
    finally:
        below = descendants(process.pid)
        process.terminate()
        try:
            process.wait(60)  # it drains for 30 s where a server is left
        finally:
            for pid in living(below):
                os.kill(pid, signal.SIGKILL)
            shutil.rmtree(where, ignore_errors=True)


def living(pids: Iterable[int]) -> list[int]:
    """Those that live; a zombie does not."""
    return [pid for pid in pids if (_stat(pid) or ["Z"])[0] != "Z"]


def descendants(pid: int) -> list[int]:
    """All processes that one has started, and those that these have."""
    every = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    parents = {child: int(stat[1]) for child in every if (stat := _stat(child))}

    def below(child: int) -> bool:
        while child in parents:
            child = parents[child]
            if child == pid:
                return True
        return False

    return sorted(child for child in parents if below(child))


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """The fields of a process's state, from the state on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
