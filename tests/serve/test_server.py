"""The server's life, in another process: it loads, serves, drains, ends."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import pytest
from fake_engine import TINY, FakeEngine
from guide_desk import needs_programs
from processes_served import SUPPORT, line, program, wait_for
from serve_tools import served

import fastslow
from fastslow.serve.api.keys import KeyLimits, KeyRing, add_key
from fastslow.serve.app import create_app
from fastslow.serve.http.listen import address_of, listen
from fastslow.tools.cli.serve import usage

PATIENCE = 120  # seconds


def test_it_loads_serves_and_drains(folder: Path) -> None:
    with program(SUPPORT / "serve_program.py", folder, 60) as server:
        with httpx.Client(base_url=line(server), timeout=PATIENCE) as client:
            assert client.get("/health").json() == {"status": "ok"}
            early = client.get("/ready")
            assert early.status_code == 503 and early.headers["retry-after"] == "1"
            assert early.json() == {"ready": False, "why": "the model is loading"}
            assert client.get("/version").json()["model"] is None
            name, pid = line(server).split()
            assert client.get("/ready").json() == {"ready": True, "why": ""}
            versions = client.get("/version").json()
            assert versions["fastslow"] == fastslow.__version__ and versions["device"] == "cpu"
            assert versions["model"] == name == "tiny" and versions["torch"]
            with client.stream("GET", "/stream?tokens=4000") as answer:
                lines = answer.iter_lines()
                tokens = int(next(lines))
                for unused in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
                    server.send_signal(unused)
                    os.kill(int(pid), unused)  # the engine's
                wait_for(lambda: client.get("/ready").status_code == 503)
                assert client.get("/ready").json()["why"] == "the server is closing"
                assert client.get("/stream?tokens=1").status_code == 503
                *rest, last = lines
                assert tokens + sum(map(int, rest)) == 4000 and last == "over"
        assert server.wait(PATIENCE) == 0
        said = server.communicate()[1]
        assert said.count("SIGUSR1 means nothing here") == said.count("SIGUSR2 means") == 1
        _gone(int(pid))


@pytest.mark.slow
def test_ctrl_c_twice_ends_it_now(folder: Path) -> None:
    with program(SUPPORT / "serve_program.py", folder, 60) as server:
        address = line(server)
        _, pid = line(server).split()
        with (
            httpx.Client(base_url=address, timeout=PATIENCE) as client,
            client.stream("GET", "/stream?tokens=4000") as answer,
        ):
            next(answer.iter_lines())
            server.send_signal(signal.SIGINT)
            wait_for(lambda: client.get("/ready").status_code == 503)
            server.send_signal(signal.SIGINT)
            assert server.wait(PATIENCE) == 1
        said = server.communicate()[1]
        assert "StoppedError" in said and "CancelledError" not in said
        _gone(int(pid))


def _gone(pid: int) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.slow
def test_what_keeps_it_from_starting_is_one_sentence(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        for number, said in ((port, f"port {port} of 127.0.0.1 is taken"), (0, "missing")):
            with program(*("-m", "fastslow", "serve", tmp_path / "missing", "--port", number)) as server:
                _, error = server.communicate(timeout=PATIENCE)
            assert server.returncode == 2
            last = error.splitlines()[-1]
            assert last.startswith("error: ") and said in last


@pytest.mark.slow
@pytest.mark.parametrize("where", [[], pytest.param(["--in-process"], marks=pytest.mark.slow)])
def test_the_command_serves_at_a_unix_socket(folder: Path, where: list[str]) -> None:
    path = folder / "socket"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))  # of a server that is gone
    options = ["--unix-socket", path, "--kv-memory", "4MiB", "--dtype", "float32", *where]
    with program("-m", "fastslow", "serve", folder, *options) as server:
        assert server.stderr is not None
        said = ""
        while "A first request" not in said:
            read = server.stderr.readline()
            assert read, said
            said += read
        assert f"is served at unix:{path}, on cpu" in said
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as client:
            assert client.get("/ready").json()["ready"]
            assert client.get("/version").json()["model"] == folder.name
        with program("-m", "fastslow", "serve", folder, *options) as second:
            assert "another server listens there" in second.communicate(timeout=PATIENCE)[1]
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE) == 0
    assert not path.exists()


@pytest.mark.parametrize("keyed", [False, True])
def test_the_first_request_that_it_prints_is_answered(tmp_path: Path, keyed: bool) -> None:
    needs_programs("bash", "curl")
    limits, file = KeyLimits(modes=["deep"]), tmp_path / "keys.json"
    key = add_key(file, "bot", limits) if keyed else ""
    with served(create_app(FakeEngine(), keys=KeyRing(file) if keyed else None)) as url:
        said = usage(url, TINY, "abacus", {"mode": "deep", "temperature": 0}, keyed)
        assert "4827 + 396" in said
        command = said[said.index("  curl ") :]
        done = subprocess.check_output(["bash", "-c", command], env={**os.environ, "KEY": key})
    assert b'"object":"chat.completion"' in done


def test_addresses(tmp_path: Path) -> None:
    with listen("localhost", 0) as listener:
        assert address_of(listener).startswith("http://")
    with listen("0.0.0.0", 0) as listener:
        port = listener.getsockname()[1]
        assert address_of(listener) == f"http://127.0.0.1:{port}"
        with pytest.raises(ValueError, match=f"port {port} of 0.0.0.0 is taken"):
            listen("0.0.0.0", port).__enter__()
    with pytest.raises(ValueError, match="cannot listen at host 'no such host', port 80"):
        listen("no such host", 80).__enter__()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is there, and is no socket"):
        listen("", 0, tmp_path / "file").__enter__()
