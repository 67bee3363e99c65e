"""A client that asks for very much, beside twenty that ask for little, at a real server."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest
from processes_served import address, command, wait_ready

from fastslow.serve.api.keys import add_key

URL = "/v1/completions"
MODEST, EACH = 20, 12  # clients, and requests of each
GREEDY, ANSWERS = 24, 16  # requests at the same time, and answers to each
NOISE = 0.1  # seconds by which a measure may be off on a busy machine


async def ask(client: httpx.AsyncClient, key: str, tokens: int, n: int) -> None:
    """Until it is answered."""
    body = {"prompt": "one two", "max_tokens": tokens, "n": n, "mode": "fast", "ignore_eos": True}
    while True:
        answer = await client.post(URL, json=body, headers={"x-api-key": key})
        if answer.status_code == 200:
            return
        assert answer.status_code == 429, answer.text
        await asyncio.sleep(0.05)


async def modest(client: httpx.AsyncClient, key: str, seconds: list[float]) -> None:
    for _ in range(EACH):
        began = time.monotonic()
        await ask(client, key, 16, 1)
        seconds.append(time.monotonic() - began)


async def greedy(client: httpx.AsyncClient, key: str) -> None:
    while True:
        await ask(client, key, 200, ANSWERS)


async def p95(url: str, keys: list[str], with_greedy: bool) -> float:
    seconds: list[float] = []
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        others = [asyncio.create_task(greedy(client, keys[0])) for _ in range(GREEDY * with_greedy)]
        await asyncio.sleep(3.0 * with_greedy)
        await asyncio.gather(*(modest(client, key, seconds) for key in keys[1:]))
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
    return sorted(seconds)[int(0.95 * len(seconds))]


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--replicas", 2)], ids=["one", "replicas"])
def test_modest_clients_take_at_most_twice_as_long(
    folder: Path, tmp_path: Path, more: tuple[object, ...]
) -> None:
    path = tmp_path / "keys.json"
    keys = [add_key(path, f"client-{n}") for n in range(MODEST + 1)]
    options = ("--port", 0, "--api-keys", path, "--kv-memory", "64MiB", "--log-level", "error")
    with command(folder, *options, *more) as process:
        url = address(process)
        wait_ready(url)
        asyncio.run(p95(url, keys, with_greedy=False))  # all is warm now
        alone = asyncio.run(p95(url, keys, with_greedy=False))
        beside = asyncio.run(p95(url, keys, with_greedy=True))
    print(f"p95 of modest clients: {alone:.3f} s alone, {beside:.3f} s beside a greedy client")
    assert beside <= 2 * alone + NOISE
