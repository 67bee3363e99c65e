"""A server in front of a tiny checkpoint, for tests."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from checkpoints import write_moge
from fastapi import FastAPI
from starlette.types import ASGIApp
from tokenizers_tiny import write_bpe

from fastslow.llm import LLM
from fastslow.serve.http.client_connection import Connection

VOCAB = 320
NAME = "tiny"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
    "{% if enable_thinking is defined and enable_thinking %}<think>{% endif %}"
)
MODES = {"modes": {"brief": {"thinking": "off", "sampling": {"max_tokens": 3, "temperature": 0}}}}


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def write_tiny(folder: Path) -> Path:
    """A random checkpoint with a tokenizer, a chat template that can think, and a mode of its own."""
    write_bpe(folder, TEMPLATE, VOCAB)
    (folder / "fastslow.json").write_text(json.dumps(MODES), "utf-8")
    return write_moge(folder, vocab=VOCAB, num_hidden_layers=2, hidden_size=32)


def open_tiny(folder: Path, **options: Any) -> LLM:
    """The checkpoint of `write_tiny`."""
    return LLM(folder, **{"kv_memory": "8MiB", "progress": False, **options})


def client_of(app: FastAPI) -> httpx.AsyncClient:
    """A client of an application that runs in this process."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=True), base_url="http://test")


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """A real server of an application on a free port of 127.0.0.1; gives its address."""
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, http=Connection, log_level="error", lifespan="off", ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        if not thread.is_alive():
            raise RuntimeError("the server did not start")
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


async def call(
    app: ASGIApp,
    method: str,
    path: str,
    body: bytes = b"",
    whole: bool = True,
    leave_after: int = 10**9,
    address: str = "127.0.0.1",
) -> list[Any]:
    """Messages that an application sends to a client that leaves after some of them, or whose body is never whole."""
    sent: list[Any] = []
    gone, asked = asyncio.Event(), [{"type": "http.request", "body": body, "more_body": not whole}]

    async def receive() -> Any:
        if asked:
            return asked.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) >= leave_after:
            gone.set()

    scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "query_string": b""}
    scope |= {"raw_path": path.encode(), "headers": [(b"content-type", b"application/json")]}
    scope |= {"http_version": "1.1", "scheme": "http", "client": (address, 1)}
    await app({**scope, "asgi": {"version": "3.0", "spec_version": "2.3"}}, receive, send)
    return sent


def events_of(text: str) -> list[Any]:
    """The data of server-sent events, without comments; the last one must be [DONE]."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") and len(block.splitlines()) == 1 for block in blocks)
    *data, done = [block.removeprefix("data: ") for block in blocks]
    assert done == "[DONE]"
    return [json.loads(one) for one in data]


def named_events_of(text: str) -> list[Any]:
    """The data of server-sent events whose names are the types of their data, without comments."""
    found = []
    for block in text.split("\n\n"):
        if block and not block.startswith(":"):
            name, data = block.split("\n")
            found.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
    return found
