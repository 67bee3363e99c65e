"""A streamed answer goes on when a host of the cluster is lost. The hosts are network namespaces of this machine."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
from network import Host, Network, why_not
from serve_engines import write_served

FRONT, WORKERS, CLIENT = "front", ("one", "two"), "client"
RAY, FASTSLOW = [sys.executable, "-m", "ray.scripts.scripts"], [sys.executable, "-m", "fastslow"]
RAY_PORT, PORT = 6379, 8000
STORE = 80_000_000  # bytes: nothing large passes through Ray's store
PATIENCE = 300.0  # seconds
TOKENS = 3000
AFTER = 20  # pieces of the answer until a host is lost
QUESTION = "Tell me a long story about a lighthouse."
# How Ray's head notices a host that is silent: it asks each second, waits three for an answer, and takes a
# host as lost after three in vain. Its own defaults are for networks that are often away, and take a minute.
NOTICE = {"period_ms": 1000, "timeout_ms": 3000, "failure_threshold": 3}


class Answer(NamedTuple):
    """The answer that the client got, and the longest pause between two pieces in seconds."""

    text: str
    pieces: int
    pause: float


class Cluster:
    """A cluster of Ray over the hosts, and the server in front of it. `log`: a folder for what programs write."""

    def __init__(self, hosts: dict[str, Host], model: Path, log: Path) -> None:
        self._hosts, self._model, self._log = hosts, model, log
        # a program without the token cannot use Ray's ports, which run whatever they are sent
        token = log.parent / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        self._environment = ["RAY_AUTH_MODE=token", f"RAY_AUTH_TOKEN_PATH={token}"]
        self._environment += [f"RAY_health_check_{name}={value}" for name, value in NOTICE.items()]
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._url = f"http://{hosts[FRONT].address}:{PORT}"

    def start(self) -> None:
        """Until a replica runs on each worker."""
        self._until(lambda: all(host.up for host in self._hosts.values()), "the hosts")
        head = self._hosts[FRONT]
        self._ray(FRONT, ["--head", f"--port={RAY_PORT}", "--num-cpus=0", "--include-dashboard=false"])
        self._until(lambda: (head.folder / "ray_current_cluster").exists(), "Ray's head")
        for name in WORKERS:
            self._ray(name, ["--num-cpus=1", f"--address={head.address}:{RAY_PORT}"])
        command = [*FASTSLOW, "serve", str(self._model), "--replicas", "2", "--address", "auto"]
        self._run(FRONT, [*command, "--host", head.address, "--port", str(PORT)], "serve")
        self._until(lambda: self._fetch("/ready") is not None, "the server")
        self._until(lambda: len(self.replicas()) == len(WORKERS), "two replicas")

    def replicas(self) -> dict[str, dict[str, Any]]:
        """Return what each replica says of itself, by its id."""
        return dict((self._fetch("/v1/stats") or {}).get("replicas", {}))

    def _fetch(self, path: str) -> dict[str, Any] | None:
        """Fetch what the server answers to the client's host; None: it is not ready."""
        process = self._hosts[CLIENT].start(["curl", "-sf", "-m", "10", f"{self._url}{path}"], subprocess.PIPE)
        output, _ = process.communicate()
        return dict(json.loads(output)) if process.returncode == 0 else None

    def ask(self, tokens: int, then: Callable[[], None] | None = None) -> Answer:
        """A streamed answer to the client's host; `then` is called after some pieces."""
        body = {
            "model": (self._fetch("/v1/models") or {})["data"][0]["id"],
            "messages": [{"role": "user", "content": QUESTION}], "mode": "fast", "temperature": 0,
            "max_tokens": tokens, "ignore_eos": True, "stream": True,
        }  # fmt: skip
        curl = ["curl", "-sNf", "-m", "600", "-H", "Content-Type: application/json"]
        curl += ["-d", json.dumps(body), f"{self._url}/v1/chat/completions"]
        process = self._hosts[CLIENT].start(curl, subprocess.PIPE)
        text, pieces, pause, last = "", 0, 0.0, 0.0
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                raise RuntimeError(f"the answer ended with an error: {event['error']['message']}")
            text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
            now = time.monotonic()
            pieces, pause, last = pieces + 1, max(pause, now - (last or now)), now
            if then is not None and pieces == AFTER:
                then()
        if process.wait() != 0:
            raise RuntimeError("the client got no whole answer")
        return Answer(text, pieces, pause)

    def lose(self, how: str) -> None:
        """Lose the host that is answering: Ray writes its replica's log there."""
        busy = next(name for name, one in self.replicas().items() if one["running"])
        logs = f"session_*/logs/serve/*{busy}*"
        host = next(h for h in self._hosts.values() if any(h.folder.glob(logs)))
        host.kill() if how == "kill" else host.cut()

    def _ray(self, name: str, words: list[str]) -> None:
        address = self._hosts[name].address
        own = [f"--node-ip-address={address}", f"--object-store-memory={STORE}"]
        self._run(name, [*RAY, "start", *words, *own, *["--disable-usage-stats", "--block"]], "ray")

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


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "cut"])
def test_an_answer_goes_on_when_a_host_is_lost(how: str, tmp_path: Path) -> None:
    """ "kill": all its processes end; "cut": its link goes down without a sign. Prints the longest pause."""
    if reason := why_not():
        pytest.skip(reason)
    model = write_served(tmp_path)
    with TemporaryDirectory(prefix="fs") as folder:
        log = Path(folder, "log")
        log.mkdir()
        with Network((FRONT, *WORKERS, CLIENT), Path(folder)) as network:
            cluster = Cluster(network.hosts, model, log)
            try:
                cluster.start()
                whole = cluster.ask(TOKENS)
                broken = cluster.ask(TOKENS, lambda: cluster.lose(how))
            except RuntimeError:
                for path in sorted(log.iterdir()):
                    print(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}")
                raise
    print(f"longest pause: undisturbed {whole.pause:.2f} s, {how} {broken.pause:.2f} s")
    assert broken.text == whole.text and whole.pieces > AFTER
