"""Engines of the server for tests, in this process and in others, driven from plain functions."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from time import monotonic
from typing import Any

from checkpoints import write_moge
from requests_made import made_request
from tokenizers_tiny import write_bpe

from fastslow.output import Output, Piece
from fastslow.serve.api.engine import Engine
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.engines.settings import EngineSettings

VOCAB = 320
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if enable_thinking %} think{% endif %} assistant:"
LONG = 4000  # tokens that an answer may have: seconds of work


def write_served(folder: Path) -> Path:
    """A tiny model that never ends an answer by itself."""
    write_bpe(folder, TEMPLATE, VOCAB)
    shape = dict[str, Any](num_hidden_layers=2, hidden_size=32, max_position_embeddings=4096)
    return write_moge(folder, vocab=VOCAB, eos_token_id=None, **shape)


def settings_of(folder: Path, max_waiting: int = 16, **options: Any) -> EngineSettings:
    own = {"kv_memory": "16MiB", "progress": False, "dtype": "float32", "max_running": 16}
    own["thinking_tags"] = ["<think>", "</think>"]
    return EngineSettings(str(folder), "tiny", own | options, max_waiting)


def asked(id: str = "one", tokens: int = 8, prompt: Any = "one two", **fields: Any) -> GenerateRequest:
    sampling = {"max_tokens": tokens, "ignore_eos": True, **fields.pop("sampling", {})}
    return made_request(id, prompt, sampling, **fields)


async def pieces_of(engine: Engine, ask: GenerateRequest) -> list[Piece]:
    return [piece async for piece in engine.stream(ask)]


async def answer_of(engine: Engine, ask: GenerateRequest) -> Output:
    *_, last = await pieces_of(engine, ask)
    assert last.output is not None
    return last.output


async def first_of(engine: Engine, ask: GenerateRequest) -> Piece:
    """The first piece; then the reader leaves."""
    async with aclosing(engine.stream(ask)) as pieces:
        async for piece in pieces:
            return piece
    raise AssertionError("no piece came")


async def until(true: Callable[[], bool | Awaitable[bool]], seconds: float = 60.0) -> None:
    """Wait for something that becomes true."""
    end = monotonic() + seconds
    while True:
        found = true()
        if found if isinstance(found, bool) else await found:
            return
        assert monotonic() < end, "it did not become true"
        await asyncio.sleep(0.02)


async def idle(engine: Engine) -> bool:
    """True while nothing runs, and every page is back."""
    stats = await engine.stats()
    return not (stats["running"] or stats["waiting"] or stats["pages_used"])
