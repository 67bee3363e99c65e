"""A system prompt that is warm at the start: the first request of every caller finds it."""

import asyncio
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loops import within
from refusals import refused
from serve_engines import settings_of, until
from serve_tools import client_of

from fastslow.serve.api.config import ServerConfig, ServerSettings
from fastslow.serve.api.engine import Engine
from fastslow.serve.app import create_app
from fastslow.serve.engines.process.client import EngineClient, Restarts
from fastslow.serve.engines.settings import EngineSettings
from fastslow.tools.cli.serve_options import Place, complete, read_warm

SYSTEM = "You answer in one short sentence, and you never say why. " * 3


def warm(folder: Path, *modes: str, **options: Any) -> EngineSettings:
    file = folder / "system.txt"
    file.write_text(SYSTEM + "\n", "utf-8")
    made = complete(ServerConfig(), ServerSettings(), Place(warm=(file,), warm_mode=modes))
    return replace(settings_of(folder, **options), warm=made.warm)


async def cached(engine: Engine, question: str, **fields: Any) -> tuple[int, int]:
    """Tokens of the prompt that the cache held, and how many the system prompt has."""
    system = {"role": "system", "content": SYSTEM}
    body = {"messages": [system, {"role": "user", "content": question}], "max_tokens": 3}
    async with client_of(create_app(engine)) as client:
        answer = await client.post("/v1/chat/completions", json=body | fields)
        tokens = (await client.post("/tokenize", json={"messages": [system]})).json()["count"]
    assert answer.status_code == 200, answer.text
    return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"], tokens


@pytest.mark.parametrize("kind", ["local", pytest.param("process", marks=pytest.mark.slow)])
@within()
async def test_the_first_request_of_every_caller_finds_it(kind: str, folder: Path) -> None:
    settings = warm(folder, "deep", "fast")
    engine: Engine = await settings.open() if kind == "local" else EngineClient(settings)
    if isinstance(engine, EngineClient):
        engine._restarts = Restarts(first=0.01)
        await engine.start()
    assert (await engine.stats())["pages_pinned"] > 0
    for fields in ({}, {"cache_salt": "me"}, {"cache_salt": "you", "mode": "fast"}):
        found, system = await cached(engine, "What is it?", **fields)
        assert system - 32 < found <= system + 16 and found >= 48
    own, _ = await cached(engine, "What is it? " * 5, cache_salt="me")
    again, _ = await cached(engine, "What is it? " * 5, cache_salt="me")
    other, _ = await cached(engine, "What is it? " * 5, cache_salt="them")
    assert again > own >= other, "what follows it is the caller's own"
    if isinstance(engine, EngineClient):
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        await until(lambda: not engine.ready)
        await until(lambda: engine.ready)
        found, _ = await cached(engine, "Apples", cache_salt="me")
        assert found >= 48, "it is warm again after a new start"
    await engine.close()


def test_what_cannot_be_warm_is_refused_before_a_request_comes(folder: Path) -> None:
    for modes, options, said in (
        (["auto"], {}, "warm system.txt in mode 'auto': pin needs one mode"),
        (["dep"], {}, "warm system.txt in mode 'dep': mode='dep' is unknown"),
        (["fast"], {"prefix_caching": False}, "pin needs prefix_caching=True"),
    ):
        refused(said, asyncio.run, warm(folder, *modes, **options).open())


def test_files_of_prefixes(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    file = tmp_path / "a.json"
    for held in (turns, {"messages": turns}):
        file.write_text(json.dumps(held), "utf-8")
        assert read_warm(file) == turns
    plain = tmp_path / "a.txt"
    plain.write_bytes("\ufeffone\r\ntwo\n\n".encode())
    assert read_warm(plain) == [{"role": "system", "content": "one\ntwo\n"}]
    for name, data, said in (
        ("b.json", b"{", "is not JSON"), ("b.json", b"[" * 100_000, "is not JSON"),
        ("c.json", b'{"messages": []}', "must hold a list of messages"),
        ("d.json", b'["x"]', "must hold a list of messages"), ("e.txt", b" \n", "is empty"),
        ("f.txt", b"\xff\xfe", "cannot be read"), ("g.txt", b"x" * (4 * 2**20 + 1), "more than 4194304 bytes"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(data)
        refused(said, read_warm, tmp_path / name)
    refused("cannot be read: No such file", read_warm, tmp_path / "missing")
