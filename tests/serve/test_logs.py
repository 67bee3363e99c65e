"""The server's log: what is in it, what is not, and that nothing it meets holds up the server."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from loguru import logger
from metrics_client import ASK, ask, client

from fastslow.output import Piece
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.observe.logs import ServerLog

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


def test_a_line_for_each_request(path: Path, opened: Opened) -> None:
    log = opened()
    with client() as ours:
        id = ask(ours, SECRET).json()["id"]
        ours.get("/health")
        ours.get("/not-there")
    log.close()
    first, second = [line for line in lines(path) if line["message"] == "request"]
    assert first["method"] == "POST" and first["route"] == ASK and first["status"] == 200
    assert first["answers"] == [id] and first["mode"] == "deep" and first["tokens"] == 6
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
    with client(log_texts=True) as ours:
        ask(ours, SECRET)
    log.close()
    (line,) = [line for line in lines(path) if line["message"] == "request"]
    assert line["prompts"] == [SECRET] and line["texts"] == ["part 0 part 1 part 2 "]


def test_an_error_is_logged_without_the_values_of_variables(path: Path, opened: Opened) -> None:
    async def script(request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        prompt = request.prompt
        if prompt:
            raise RuntimeError("it broke")
        yield Piece()

    log = opened()
    with client(FakeEngine(script)) as ours:
        assert ask(ours, SECRET).status_code == 500
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
    opened: Opened, capfd: pytest.CaptureFixture[str]
) -> None:
    log = opened(path=Path("/dev/full"))
    with client() as ours:
        for _ in range(20):
            assert ask(ours, SECRET).status_code == 200
    log.close()
    assert "No space left on device" in capfd.readouterr().err
