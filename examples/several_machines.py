"""A server with an engine on each of two hosts, and what its client sees when a host is lost.

The hosts are network namespaces of this machine (`examples/cluster/`), so that a cable can be pulled.
Needs Linux, root, iproute2 and `pip install 'fastslow[ray]'`.

    sudo python examples/several_machines.py [MODEL] --lose kill   # all its processes end
    sudo python examples/several_machines.py [MODEL] --lose cut    # its link goes down without a sign
"""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cluster.network import Host, Network, why_not

FRONT, WORKERS, CLIENT = "front", ("one", "two"), "client"
RAY, FASTSLOW = [sys.executable, "-m", "ray.scripts.scripts"], [sys.executable, "-m", "fastslow"]
RAY_PORT, PORT = 6379, 8000
NO_PAGE = "--include-dashboard=false"
STORE = 80_000_000  # bytes: nothing large passes through Ray's store
PATIENCE = 300.0  # seconds
QUESTION = "Tell me a long story about a lighthouse."
# How Ray's head notices a host that is silent: it asks each second, waits three for an answer, and takes a
# host as lost after three in vain. Its own defaults are for networks that are often away, and take a minute.
NOTICE = {"period_ms": 1000, "timeout_ms": 3000, "failure_threshold": 3}


@dataclass
class Answer:
    """What the client got."""

    text: str = ""
    times: list[float] = field(default_factory=list)

    @property
    def longest_gap(self) -> float:
        """Seconds between two pieces."""
        return max((b - a for a, b in zip(self.times, self.times[1:], strict=False)), default=0.0)


class Play:
    """A cluster of Ray over the hosts, and the server in front of it.

    Args:
        hosts: by name.
        model: what is served.
        log: a folder for what the programs write.
        notice: Ray's health checks.
    """

    def __init__(
        self, hosts: dict[str, Host], model: str, log: Path, notice: dict[str, int]
    ) -> None:
        self._hosts, self._model, self._log = hosts, model, log
        # who has no token cannot use Ray's ports, which run whatever they are sent
        token = log.parent / "token"
        token.write_text(secrets.token_hex(32))
        self._environment = ["RAY_AUTH_MODE=token", f"RAY_AUTH_TOKEN_PATH={token}"]
        self._environment += [f"RAY_health_check_{name}={value}" for name, value in notice.items()]
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._url = f"http://{hosts[FRONT].address}:{PORT}"

    def start(self) -> None:
        """Until a replica runs on each worker."""
        self._until(lambda: all(host.up for host in self._hosts.values()), "the hosts")
        head = self._hosts[FRONT]
        self._ray(FRONT, ["--head", f"--port={RAY_PORT}", "--num-cpus=0", NO_PAGE])
        self._until(lambda: (head.folder / "ray_current_cluster").exists(), "Ray's head")
        for name in WORKERS:
            joined = ["--num-cpus=1", f"--address={head.address}:{RAY_PORT}"]
            self._ray(name, joined)
        command = [*FASTSLOW, "serve", self._model, "--replicas", "2", "--address", "auto"]
        self._run(FRONT, [*command, "--host", head.address, "--port", str(PORT)], "serve")
        self._until(lambda: self._fetch("/ready") is not None, "the server")
        self._until(lambda: len(self.replicas()) == len(WORKERS), "two replicas")

    def replicas(self) -> dict[str, dict[str, Any]]:
        """What each says of itself."""
        stats = self._fetch("/v1/stats")
        return {} if stats is None else dict(stats.get("replicas", {}))

    def _fetch(self, path: str) -> dict[str, Any] | None:
        """What the server answers to the client's host; None: it is not ready."""
        curl = ["curl", "-sf", "-m", "10", f"{self._url}{path}"]
        process = self._hosts[CLIENT].start(curl, subprocess.PIPE)
        output, _ = process.communicate()
        return dict(json.loads(output)) if process.returncode == 0 else None

    def host_of(self, replica: str) -> Host:
        """Where it runs: Ray writes its log there."""
        for name in WORKERS:
            if any(self._hosts[name].folder.glob(f"session_*/logs/serve/*{replica}*")):
                return self._hosts[name]
        raise RuntimeError(f"replica {replica} is on no host")

    def ask(self, tokens: int, after: int, then: Callable[[], None]) -> Answer:
        """A streamed answer; `then` is called once `after` pieces are there."""
        program = str(Path(__file__).parent / "cluster" / "client.py")
        command = [sys.executable, program, self._url, str(tokens), QUESTION]
        process = self._hosts[CLIENT].start(command, subprocess.PIPE)
        answer = Answer()
        assert process.stdout is not None
        for line in process.stdout:
            piece = json.loads(line)
            answer.text += piece["text"]
            answer.times.append(piece["at"])
            if len(answer.times) == after:
                then()
        if process.wait() != 0:
            raise RuntimeError("the client got no whole answer")
        return answer

    def lose(self, how: str) -> None:
        """Lose the host that is answering."""
        busy = [id for id, one in self.replicas().items() if one["running"]]
        host = self.host_of(busy[0])
        print(f"{how} {host.space}, where replica {busy[0]} is answering", flush=True)
        host.kill() if how == "kill" else host.cut()

    def _ray(self, name: str, words: list[str]) -> None:
        host = self._hosts[name]
        own = [f"--node-ip-address={host.address}", f"--object-store-memory={STORE}"]
        quiet = ["--disable-usage-stats", "--block"]
        self._run(name, [*RAY, "start", *words, *own, *quiet], "ray")

    def _run(self, name: str, command: list[str], what: str) -> None:
        with (self._log / f"{name}-{what}.txt").open("wb") as output:
            process = self._hosts[name].start(["env", *self._environment, *command], output)
        self._running[f"{what} on {name}"] = process

    def _until(self, there: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not there():
            for name, process in self._running.items():
                if process.poll() is not None:
                    raise RuntimeError(f"ended by itself: {name}")
            if time.monotonic() > end:
                raise RuntimeError(f"not there after {PATIENCE:g} s: {what}")
            time.sleep(0.5)


@contextmanager
def ending_in_order() -> Iterator[None]:
    """SIGTERM is as Ctrl-C: the hosts are taken down."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2-moge")
    parser.add_argument("--lose", choices=["kill", "cut"], default="kill")
    parser.add_argument("--tokens", type=int, default=400, help="of the answer")
    parser.add_argument("--after", type=int, default=20, help="pieces until the host is lost")
    parser.add_argument("--ray-defaults", action="store_true", help="health checks as Ray has them")
    arguments = parser.parse_args()
    if reason := why_not():
        sys.exit(f"error: {reason}")
    notice = {} if arguments.ray_defaults else NOTICE
    names = (FRONT, *WORKERS, CLIENT)
    with ending_in_order(), TemporaryDirectory(prefix="fs") as folder:
        log = Path(folder, "log")
        log.mkdir()
        try:
            with Network(names, Path(folder)) as network:
                play = Play(network.hosts, arguments.model, log, notice)
                play.start()
                _show(play, arguments)
        except RuntimeError as error:
            for path in sorted(log.iterdir()):
                print(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}", flush=True)
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit(130)


def _show(play: Play, arguments: argparse.Namespace) -> None:
    print(f"two replicas: {', '.join(play.replicas())}", flush=True)
    whole = play.ask(arguments.tokens, 0, lambda: None)
    print(
        f"undisturbed: {len(whole.times)} pieces, longest gap {whole.longest_gap:.2f} s", flush=True
    )
    broken = play.ask(arguments.tokens, arguments.after, lambda: play.lose(arguments.lose))
    print(f"a host lost: {len(broken.times)} pieces, longest gap {broken.longest_gap:.2f} s")
    if broken.text != whole.text:
        raise RuntimeError("the answer differs")
    print("the answer is the same", flush=True)


if __name__ == "__main__":
    main()
