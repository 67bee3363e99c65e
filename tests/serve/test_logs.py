"""The server's log: what is in it, what is not, and that nothing it meets holds up the server."""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from fastapi import FastAPI
from fastapi.testclient import TestClient
from loguru import logger

from fastslow.output import Piece
from fastslow.serve.api.ask import Ask
from fastslow.serve.api.limits import Limits
from fastslow.serve.observe import log_writer
from fastslow.serve.observe.log_writer import LogWriter
from fastslow.serve.observe.logs import ServerLog, escaped
from fastslow.serve.observe.observed_engine import ObservedEngine
from fastslow.serve.observe.request_log import RequestLog
from fastslow.serve.observe.request_record import RequestRecords

Opened = Callable[..., ServerLog]
SECRET = "a prompt that nobody else may read"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "server.log"


@pytest.fixture
def opened(path: Path) -> Iterator[Opened]:
    """Opens logs; at the end the tests' own log is as it was."""
    root = logging.getLogger()
    before = root.handlers, root.level
    logs: list[ServerLog] = []

    def open_log(**options: Any) -> ServerLog:
        logs.append(ServerLog(**{"path": path, **options}))
        return logs[-1]

    yield open_log
    for log in logs:
        try:
            log.close()
        except (ValueError, OSError):
            pass
    root.handlers, root.level = before
    logger.remove()
    logger.add(sys.stderr)
    logger.enable("fastslow")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def client(texts: bool = False, engine: FakeEngine | None = None) -> TestClient:
    app, observed = FastAPI(), ObservedEngine(engine or FakeEngine(), Limits())

    @app.post("/v1/ask")
    async def ask() -> dict[str, str]:
        async for _ in observed.stream(Ask("answer-1", SECRET)):
            pass
        return {}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {}

    app.add_middleware(RequestRecords, observers=[RequestLog(texts)])
    return TestClient(app, raise_server_exceptions=False)


def test_a_line_for_each_request(path: Path, opened: Opened) -> None:
    log = opened()
    with client() as ours:
        ours.post("/v1/ask")
        ours.get("/health")
        ours.get("/not-there")
    log.close()
    first, second = [line for line in lines(path) if line["message"] == "request"]
    assert first["method"] == "POST" and first["route"] == "/v1/ask" and first["status"] == 200
    assert first["answers"] == ["answer-1"] and first["mode"] == "deep" and first["tokens"] == 6
    assert (
        first["prompt_tokens"] == 10 and first["cached_tokens"] == 4 and first["key"] == "anonymous"
    )
    assert first["finish_reasons"] == ["stop"] and first["tokens_per_step"] == 2.0
    assert 0 <= first["first_token_seconds"] <= first["seconds"]
    assert first["request_id"].startswith("req-") and first["level"] == "INFO"
    assert second["path"] == "/not-there" and second["status"] == 404
    assert SECRET not in path.read_text("utf-8") and "part 0" not in path.read_text("utf-8")


def test_texts_only_where_they_are_asked_for(path: Path, opened: Opened) -> None:
    log = opened()
    with client(texts=True) as ours:
        ours.post("/v1/ask")
    log.close()
    (line,) = [line for line in lines(path) if line["message"] == "request"]
    assert line["prompts"] == [SECRET] and line["texts"] == ["part 0 part 1 part 2 "]


def test_an_error_is_told_without_the_values_of_variables(path: Path, opened: Opened) -> None:
    async def script(ask: Ask) -> AsyncGenerator[Piece, None]:
        prompt = ask.prompt
        if prompt:
            raise RuntimeError("it broke")
        yield Piece()

    log = opened()
    with client(engine=FakeEngine(script)) as ours:
        assert ours.post("/v1/ask").status_code == 500
    try:
        secret = SECRET
        _ = 1 / (len(secret) - len(SECRET))
    except ZeroDivisionError:
        logger.exception("an error of the server's own")
    log.close()
    text = path.read_text("utf-8")
    assert "ZeroDivisionError" in text and SECRET not in text
    (line,) = [line for line in lines(path) if line["message"] == "request"]
    assert line["level"] == "ERROR" and line["failed"] == "error"


NASTY = 'a\nb\r\n{"level": "X"}\x1b[31m\u2028\u2029\x85\x00\u202e\ud800 key=other'


@pytest.mark.parametrize("format", ["json", "text"])
def test_nothing_a_client_sends_makes_a_line_of_its_own(
    path: Path, opened: Opened, format: str
) -> None:
    log = opened(format=format)
    logger.bind(path=NASTY, key="bot").info("request {}", NASTY)
    log.close()
    data = path.read_bytes()
    assert data.count(b"\n") == 1 and data.endswith(b"\n")
    text = data.decode("utf-8").removesuffix("\n")
    assert text.isprintable() and len(text.splitlines()) == 1
    if format == "text":
        assert text.count(" key=bot") == 1 and text.index('path="') < text.index(" key=bot")
    else:
        assert json.loads(text)["path"] == NASTY


def test_escapes() -> None:
    assert escaped("plain, é 漢") == "plain, é 漢"
    assert escaped("a\nb\x1b") == "a\\nb\\x1b"
    assert escaped("\ud800").isascii()


def test_levels_formats_and_files_are_checked(tmp_path: Path, opened: Opened) -> None:
    with pytest.raises(ValueError, match="log_level='loud' must be one of trace, debug"):
        opened(level="loud")
    with pytest.raises(ValueError, match="log_format='xml' must be one of json, text"):
        opened(format="xml")
    with pytest.raises(ValueError, match="cannot be written"):
        opened(path=tmp_path / "not there" / "x.log")


def test_uvicorns_lines_go_the_same_way(path: Path, opened: Opened) -> None:
    before = logging.getLogger("uvicorn.error")
    before.addHandler(logging.StreamHandler())
    before.setLevel(logging.NOTSET)  # servers of other tests have set it
    log = opened(level="warning")
    logging.getLogger("uvicorn.error").warning("a warning of %s", "uvicorn")
    logging.getLogger("uvicorn.error").info("not written")
    logging.getLogger("uvicorn.access").info("nor is this")
    log.close()
    (line,) = lines(path)
    assert line["message"] == "a warning of uvicorn" and line["logger"]
    assert line["level"] == "WARNING"


def test_a_full_disk_costs_lines_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, opened: Opened
) -> None:
    monkeypatch.setattr(log_writer, "EVERY", 0.001)
    log = opened(path=Path("/dev/full"))
    with client() as ours:
        for _ in range(20):
            assert ours.post("/v1/ask").status_code == 200
    log.close()
    assert log.lost >= 20


def written(write: int, read: int, count: int) -> str:
    """What comes out of a pipe whose writer lost lines before it was read."""
    writer = LogWriter(write)
    try:
        for n in range(count):
            writer.write(f"line {n} {'x' * 1000}\n")
        assert writer.lost > 0  # and this thread was never held up
        os.set_blocking(read, False)
        deadline, text = time.monotonic() + 10, b""
        while b"were lost" not in text and time.monotonic() < deadline:
            writer.write("again\n")
            try:
                text += os.read(read, 1 << 20)
            except BlockingIOError:
                time.sleep(0.001)
        return text.decode()
    finally:
        os.close(read)
        writer.close()
        os.close(write)


def test_a_pipe_that_nobody_reads_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "MOST_WAITING", 100)
    read, write = os.pipe()
    text = written(write, read, 1000)
    assert "log lines were lost" in text


def test_a_closed_pipe_costs_lines_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "EVERY", 0.001)
    read, write = os.pipe()
    os.close(read)
    writer = LogWriter(write)
    for n in range(10):
        writer.write(f"line {n}\n")
    writer.close()
    os.close(write)
    assert writer.lost == 10


@pytest.mark.parametrize("room", range(24))
def test_lines_are_whole_or_counted_wherever_the_disk_is_full(
    monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Writes end after some bytes, then fail, then work."""
    disk, left = bytearray(), [room]

    def write(_: int, data: memoryview) -> int:
        if left[0] == 0:
            raise OSError(28, "full")
        part = bytes(data[: left[0]])
        disk.extend(part)
        left[0] -= len(part)
        return len(part)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(log_writer, "EVERY", 1000.0)  # nothing is written before the end
    writer = LogWriter(-1)
    for n in range(4):
        writer._lines.append(f"line{n}\n".encode())
    while writer._lines:
        writer._write_some()
    kept = room // 6
    assert writer.lost == 4 - kept
    left[0] = 10**6
    writer.write("after\n")
    writer.close()
    lines = disk.decode().split("\n")
    torn = [f"line{kept}"[: room % 6]] if room % 6 else []
    assert lines[:kept] == [f"line{n}" for n in range(kept)]
    assert lines[kept : kept + len(torn)] == torn
    assert f"{4 - kept} log lines were lost" in lines[kept + len(torn)]
    assert lines[kept + len(torn) + 1 :] == ["after", ""]


PROGRAM = """
import resource, sys, time
from pathlib import Path
from loguru import logger
from fastslow.serve.observe import log_writer
from fastslow.serve.observe.logs import ServerLog
log_writer.EVERY = 0.001
path = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))
log = ServerLog("json", "INFO", path)
for n in range(40):
    logger.info("line {}", n)
while log.lost < 20:
    time.sleep(0.001)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
time.sleep(0.3)
logger.info("after")
log.close()
print("alive")
"""


def test_a_file_that_may_not_grow_and_then_may(path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "alive\n"
    found = path.read_text("utf-8").splitlines()
    assert json.loads(found[-1])["message"] == "after"
    assert any("log lines were lost" in line for line in found)
    whole = [json.loads(line) for line in found if line.endswith("}")]
    assert len(whole) >= len(found) - 1  # one was cut where the file was full
