"""The server's log: what is in it, what is not, and that nothing it meets holds up the server."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from fastapi.testclient import TestClient
from loguru import logger
from metrics_client import ASK, ask, client, scraped
from refusals import refused
from serve_tools import call

from fastslow import LLM, Piece
from fastslow.serve.api.engine import NotReady
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.app import create_app
from fastslow.serve.engines.local import LocalEngine
from fastslow.serve.observe.logs import ServerLog, lost_lines

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


def requests(path: Path) -> list[dict[str, Any]]:
    return [line for line in lines(path) if line["message"] == "request"]


def test_a_line_for_each_request(path: Path, opened: Opened) -> None:
    log = opened()
    with client() as ours:
        id = ask(ours, SECRET).json()["id"]
        ours.get("/health")
        ours.get("/not-there")
    log.close()
    first, second = requests(path)
    assert first["method"] == "POST" and first["route"] == ASK and first["status"] == 200
    assert first["answers"] == [id] and first["mode"] == "deep" and first["tokens"] == 6
    assert first["prompt_tokens"] == 10 and first["cached_tokens"] == 4 and first["key"] == "anonymous"
    assert first["finish_reasons"] == ["stop"] and first["tokens_per_step"] == 2.0
    assert 0 <= first["first_token_seconds"] <= first["seconds"]
    assert first["request_id"].startswith("req-") and first["level"] == "INFO"
    assert second["path"] == "/not-there" and second["status"] == 404
    assert SECRET not in path.read_text("utf-8") and "part 0" not in path.read_text("utf-8")


def test_texts_only_where_they_are_asked_for(path: Path, opened: Opened) -> None:
    log = opened()
    with client(log_texts=True) as ours:
        ask(ours, SECRET)
        said = ask(ours, model=SECRET).json()["error"]["message"]
    log.close()
    first, second = requests(path)
    assert first["prompts"] == [SECRET] and first["texts"] == ["part 0 part 1 part 2 "]
    assert second["reason"] == said and SECRET in said


def test_an_error_is_logged_without_the_values_of_variables(path: Path, opened: Opened) -> None:
    async def script(request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        if request.prompt:
            raise RuntimeError("it broke")
        yield Piece()

    log = opened()
    with client(FakeEngine(script)) as ours:
        assert ask(ours, SECRET).status_code == 500
    try:
        _ = 1 / (len(SECRET) - len(SECRET))
    except ZeroDivisionError:
        logger.exception("an error of the server's own")
    log.close()
    text = path.read_text("utf-8")
    assert "ZeroDivisionError" in text and SECRET not in text
    (line,) = requests(path)
    assert line["level"] == "ERROR" and line["failed"] == "error"


NASTY = 'a\nb\r\n{"level": "X"}\x1b[31m\u2028\u2029\x85\x00\u202e\ud800 key=other'


@pytest.mark.parametrize("format", ["json", "text"])
def test_nothing_a_client_sends_makes_a_line_of_its_own(path: Path, opened: Opened, format: str) -> None:
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
    refused("log_level='loud' must be one of trace, debug", opened, level="loud")
    refused("log_format='xml' must be one of json, text", opened, format="xml")
    refused("cannot be written", opened, path=tmp_path / "not there" / "x.log")


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
    assert line["message"] == "a warning of uvicorn" and line["logger"] and line["level"] == "WARNING"


def test_a_full_disk_is_said_once_and_counted(opened: Opened, capfd: pytest.CaptureFixture[str]) -> None:
    log, before = opened(path=Path("/dev/full")), lost_lines()
    with client() as ours:
        for _ in range(20):
            assert ask(ours, SECRET).status_code == 200
        log.close()
        assert scraped(ours)["fastslow:log_lines_lost_total", ()] == lost_lines() >= before + 20
    assert capfd.readouterr().err == "the log cannot be written: No space left on device; lines are lost\n"


def test_a_line_is_whole_where_its_file_takes_it_in_parts(
    path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda number, data: write(number, data[:7]))
    log = opened()
    logger.info("a line of more than seven bytes")
    log.close()
    assert [line["message"] for line in lines(path)] == ["a line of more than seven bytes"]


def test_a_refused_request_says_why_and_shows_no_text_of_it(path: Path, opened: Opened) -> None:
    log = opened()
    said = []
    with client() as ours:
        for fields in (
            {"temperature": -1}, {"temprature": 1}, {"prompt": {"a": SECRET, "b": 'it\'s a "secret"'}},
            {"prompt": SECRET, "stop": {"x": SECRET * 9}}, {"prompt": [[7654, 4567], "x", 7654]}, {"model": SECRET},
        ):  # fmt: skip
            answer = ours.post(ASK, json={"prompt": SECRET, **fields})
            assert answer.status_code in (400, 404)
            said.append(answer.json()["error"]["message"])
        ours.get("/not-there")
    log.close()
    reasons = [line["reason"] for line in requests(path)]
    assert reasons[0] == said[0] and reasons[0].startswith("temperature=-1 must be ")
    assert reasons[1] == said[1] == "field 'temprature' is unknown; did you mean 'temperature'?"
    assert reasons[2].endswith("=...") and reasons[-1] == "Not Found"
    text = path.read_text("utf-8")
    assert "secret" not in text and SECRET[:20] not in text and "7654" not in text


Z = "my zebra"
TOOL = {"name": "zebra", "parameters": {"properties": {"a": {"pattern": f"({Z}"}}}}
WRONG: list[dict[str, Any]] = [
    *({"guided_regex": text} for text in (f"({Z}", f"{Z}[", f"{Z}(?=x)")),
    *({"guided_grammar": text} for text in (f"{Z} x", f"start: {Z}", f"root ::= {Z}")),
    {"guided_json": {"type": Z}},
    {"guided_json": {Z: Z, "$ref": f"#/{Z}"}},
    {"guided_json": {"required": [Z], "type": "object", "additionalProperties": False}},
    *({field: {Z: Z}} for field in ("logit_bias", "mode", "speculation", "chat_template_kwargs")),
    {"mode": {"base": "deep", "loop": {Z: 1}}},
    *({Z: 1, field: Z} for field in ("mode", "model", "stop", "turn")),
    {"tools": [{"type": "function", "function": TOOL}], "tool_choice": "required"},
    {"tools": [{"type": "function", "function": TOOL}] * 2},
    {"messages": [{"role": Z, "content": Z}]},
    {"messages": [{"role": "user", "content": [{"type": Z, "text": Z}]}]},
]


def test_no_text_of_a_client_is_in_a_log_of_everything(path: Path, opened: Opened, llm: LLM) -> None:
    """Nor a mode's name, or what a library says of a grammar."""
    log = opened(level="debug")
    with TestClient(create_app(LocalEngine(llm, "tiny"))) as ours:
        for wrong in WRONG:
            body = {"messages": [{"role": "user", "content": Z}], "max_tokens": 2, **wrong}
            ours.post("/v1/chat/completions", json=body)
            ask(ours, Z, max_tokens=1, **{k: v for k, v in wrong.items() if k[:2] == "gu"})
        assert ask(ours, Z, max_tokens=2, mode={"base": "fast", "name": Z}).status_code == 200
    log.close()
    assert len(requests(path)) == 2 * len(WRONG) + 1
    assert not [line for line in path.read_text("utf-8").splitlines() if "zebra" in line]


def test_a_server_that_drains_is_no_error(path: Path, opened: Opened) -> None:
    async def script(request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        raise NotReady("the server is closing")
        yield

    log = opened()
    with client(FakeEngine(script)) as ours:
        assert ask(ours).status_code == 503
    log.close()
    (line,) = requests(path)
    assert line["level"] == "WARNING" and line["reason"] == "the server is closing"


def test_the_prompt_of_a_client_that_left_is_counted(path: Path, opened: Opened) -> None:
    async def script(request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        yield Piece("a", token_ids=[1, 2])
        await asyncio.sleep(60)

    log = opened()
    app = create_app(FakeEngine(script))
    asyncio.run(call(app, "POST", ASK, json.dumps({"prompt": SECRET, "stream": True}).encode(), leave_after=1))
    log.close()
    (line,) = requests(path)
    assert line["client_left"] and (line["prompt_tokens"], line["tokens"]) == (3, 2)


@pytest.mark.parametrize(("reasons", "shown"), [
    (["stop"], "finish_reasons=stop"), (["stop", "length"], "finish_reasons=stop,length"),
    (["a b", "c"], "finish_reasons=\"['a b', 'c']\""),
])  # fmt: skip
def test_a_list_of_words_is_written_alike_whatever_its_length(
    path: Path, opened: Opened, reasons: list[str], shown: str
) -> None:
    log = opened(format="text")
    logger.bind(finish_reasons=reasons).info("request")
    log.close()
    assert path.read_text("utf-8").endswith(f" request {shown}\n")
