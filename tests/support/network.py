"""Hosts in network namespaces of this machine, joined by a switch. Needs Linux, root and iproute2."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

NETWORK = "10.77.0"  # nobody else sees its addresses: the switch has a namespace, too
DEVICE = "eth0"
OWN_FOLDERS = ("TMPDIR", "RAY_TMPDIR")  # Ray would write there instead, where all hosts do
PROGRAMS = ("ip", "unshare", "nsenter", "mount")


def why_not() -> str:
    """Why hosts cannot be made here, or nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (packages iproute2, util-linux)"
    name = f"fs{os.getpid()}-try"
    try:
        _ip("netns", "add", name)
    except RuntimeError as error:
        return f"this machine allows no network namespaces: {error}"
    _ip("netns", "delete", name)
    return ""


class Host:
    """A network namespace `space`, its processes, and the `folder` that these see as /tmp/ray."""

    def __init__(self, space: str, address: str, folder: Path) -> None:
        self.space, self.address, self.folder = space, address, folder
        folder.mkdir(parents=True)
        # all processes of a process namespace end with its first one
        script = 'mkdir -p /tmp/ray && mount --bind "$0" /tmp/ray && touch "$0/up" && exec sleep infinity'
        first = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._first = subprocess.Popen(
            ["ip", "netns", "exec", space, *first, "sh", "-c", script, str(folder)],
            start_new_session=True,  # Ctrl-C is for who made the hosts: they take them down in order
        )
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, command: Sequence[str], output: int | IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a command there without waiting for it."""
        own = Path("/proc", str(self._first.pid), "ns")
        spaces = [f"--net={own}/net", f"--mount={own}/mnt", f"--pid={own}/pid_for_children"]
        process = subprocess.Popen(
            ["nsenter", *spaces, *command],
            env={name: value for name, value in os.environ.items() if name not in OWN_FOLDERS},
            stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT if output != subprocess.PIPE else None, start_new_session=True,
        )  # fmt: skip
        self._started.append(process)
        return process

    @property
    def up(self) -> bool:
        """True while what commands need is there."""
        return self._first.poll() is None and (self.folder / "up").exists()

    def cut(self) -> None:
        """Pull its cable: nothing comes in or goes out, and no side is notified."""
        _ip("-n", self.space, "link", "set", DEVICE, "down")

    def kill(self) -> None:
        """End all its processes at once; its network tells those that it was connected to."""
        self._first.kill()
        self._first.wait()
        for process in self._started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)


class Network:
    """Hosts, and a switch between them. All of it is gone at the end of the `with` block. `folder`: for files of the
    hosts; its path must be short, since sockets lie in it."""

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        self._names, self._folder = names, folder
        self._prefix = f"fs{os.getpid()}"
        self._spaces: list[str] = []
        self.hosts: dict[str, Host] = {}

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _build(self) -> None:
        switch = self._space("switch")
        _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "up")
        for number, name in enumerate(self._names, 1):
            space, port, address = self._space(name), f"port{number}", f"{NETWORK}.{number}"
            _ip("-n", switch, "link", "add", port, *["type", "veth", "peer", "name", DEVICE, "netns", space])
            _ip("-n", switch, "link", "set", port, "master", "br0", "up")
            _ip("-n", space, "address", "add", f"{address}/24", "dev", DEVICE)
            for device in ("lo", DEVICE):
                _ip("-n", space, "link", "set", device, "up")
            # leads nowhere; programs ask it which address is the host's own
            _ip("-n", space, "route", "add", "default", "dev", DEVICE)
            self.hosts[name] = Host(space, address, self._folder / name)

    def _space(self, name: str) -> str:
        space = f"{self._prefix}-{name}"
        _ip("netns", "add", space)
        self._spaces.append(space)
        return space

    def _remove(self) -> None:
        for host in self.hosts.values():
            host.kill()
        for space in self._spaces:
            _ip("netns", "delete", space)
        self.hosts, self._spaces = {}, []


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False, timeout=30)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
