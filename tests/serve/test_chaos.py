"""Engines that are killed, stopped and poisoned while clients ask, and leave: all others get their answers.

`FASTSLOW_CHAOS_SECONDS=600` makes it longer; usual are 60 for each server.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import httpx
import pytest
from processes_served import SUPPORT, line, program, wait_ready
from ray_engines import descendants, living
from serve_engines import until

SECONDS = min(600.0, float(os.environ.get("FASTSLOW_CHAOS_SECONDS", "60")))
CLIENTS = 8
TOKENS = 300
PROMPTS = ["one two", "the quick brown fox", "three", "jumps over", "a b c", "the lazy dog"]
EVENTS = ("poison", "kill", "poison in a stream", "stop", "pause")
WHOLE, LEFT, ENDED = "whole", "left", "ended"


class Held(NamedTuple):
    """Memory, files and threads that the server's process holds."""

    megabytes: float
    files: int
    threads: int

    @classmethod
    def by(cls, pid: int) -> Held:
        own = Path(f"/proc/{pid}")
        pages = int((own / "statm").read_text().split()[1])
        files, threads = (len(list((own / name).iterdir())) for name in ("fd", "task"))
        return cls(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, files, threads)


class Chaos:
    """Clients, and what befalls the engines."""

    def __init__(self, pid: int, http: httpx.AsyncClient, replicas: int) -> None:
        self.pid, self.http, self.replicas = pid, http, replicas
        self.random = Random(7)
        self.right: dict[str, str] = {}
        self.found: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.stopped = False
        self.number = 0  # of events

    def engines(self) -> list[int]:
        return living(descendants(self.pid))

    async def texts(self, prompt: str, streamed: bool) -> AsyncGenerator[str, None]:
        """Of an answer, by pieces. RuntimeError: it ended with this sentence."""
        body: dict[str, Any] = {"model": "tiny", "prompt": prompt, "mode": "fast"}
        body |= {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "stream": streamed}
        async with self.http.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200 or not streamed:
                found = json.loads(await answer.aread())
                if answer.status_code != 200:
                    raise RuntimeError(f"{answer.status_code}: {found['error']['message']}")
                yield found["choices"][0]["text"]
                return
            over = False
            async for line in answer.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    over = True
                    continue
                found = json.loads(line.removeprefix("data: "))
                if "error" in found:
                    raise RuntimeError(found["error"]["message"])
                for choice in found["choices"]:
                    yield choice["text"]
            if not over:
                self.wrong.append(f"{prompt}: a stream without its end")

    async def ask(self, prompt: str, streamed: bool, leaves: bool = False) -> str:
        """Ask for an answer and return how it ends."""
        text = ""
        pieces = self.texts(prompt, streamed)
        try:
            async for part in pieces:
                text += part
                if leaves and len(text) > 50:
                    return LEFT
        except RuntimeError as error:
            return f"{ENDED}: {error}"
        except httpx.HTTPError as error:
            self.wrong.append(f"{prompt}: {error!r} after {len(text)} characters")
            return "broken"
        finally:
            await pieces.aclose()
        if text != self.right.setdefault(prompt, text):
            self.wrong.append(f"{prompt}: other text, {len(text)} characters")
        return WHOLE

    async def client(self) -> None:
        while not self.stopped:
            prompt, leaves = self.random.choice(PROMPTS), self.random.random() < 0.2
            how = await self.ask(prompt, leaves or self.random.random() < 0.5, leaves)
            self.found[how] += 1
            if how.startswith(ENDED):
                await asyncio.sleep(0.1)

    async def all_run(self) -> bool:
        if (await self.http.get("/ready")).status_code != 200:
            return False
        answer = await self.http.get("/v1/stats")
        stats = answer.json()
        if answer.status_code != 200 or stats["age_seconds"] > 1:
            return False
        return bool(stats.get("replicas_running", 0) == self.replicas)

    async def events(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            event = EVENTS[self.number % len(EVENTS)]
            self.number += 1
            await self.befall(event, self.random.choice(self.engines()))
            await until(self.all_run, 60)
            await asyncio.sleep(self.random.uniform(0.5, 2.0))
            self.found[f"event: {event}"] += 1

    async def befall(self, event: str, engine: int) -> None:
        if event == "kill":
            os.kill(engine, signal.SIGKILL)
        elif event == "stop":
            os.kill(engine, signal.SIGSTOP)
            await until(lambda: engine not in self.engines(), 60)
        elif event == "pause":
            os.kill(engine, signal.SIGSTOP)
            await asyncio.sleep(2.5)
            os.kill(engine, signal.SIGCONT)
        else:
            how = await self.ask("poison", event != "poison")
            if not how.startswith(ENDED):
                self.wrong.append(f"the poison's own: {how}")

    async def quiet(self) -> Held:
        """Wait, and return what the server holds while nobody asks."""
        await asyncio.sleep(2)
        return Held.by(self.pid)

    async def run(self, seconds: float) -> None:
        self.stopped = False
        clients = [asyncio.create_task(self.client()) for _ in range(CLIENTS)]
        try:
            await self.events(seconds)
        finally:
            self.stopped = True
            _, late = await asyncio.wait(clients, timeout=60)
        assert not late, "clients still wait"


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [2, 0])
def test_none_is_lost_but_the_poisons_own(folder: Path, tmp_path: Path, replicas: int) -> None:
    async def main(pid: int, url: str) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=CLIENTS)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http:
            chaos = Chaos(pid, http, replicas)
            await until(chaos.all_run, 120)
            for prompt in PROMPTS:
                assert await chaos.ask(prompt, False) == WHOLE
            first = SECONDS / 4 if SECONDS < 240 else 60.0
            await chaos.run(first)
            before = await chaos.quiet()
            await chaos.run(SECONDS - first)
            after = await chaos.quiet()
            print(f"{replicas} replicas, {SECONDS:g} s: {dict(chaos.found)}; {before} {after}")
            assert not chaos.wrong
            # an engine alone loads its model for most of the time
            assert chaos.found[WHOLE] > SECONDS / (1 if replicas else 5) and chaos.found[LEFT]
            ended = {how: n for how, n in chaos.found.items() if how.startswith(ENDED)}
            if replicas:
                assert not ended
            assert all("engine" in how for how in ended), "each is one sentence about the engine"
            assert len(chaos.engines()) == max(1, replicas) and after.megabytes < before.megabytes + 30
            assert after.files <= before.files + 4 and after.threads <= before.threads + 4
            for prompt in PROMPTS:
                assert await chaos.ask(prompt, True) == WHOLE

    log = tmp_path / "log"
    words = (SUPPORT / "chaos_program.py", folder, replicas)
    with log.open("w") as written, program(*words, stderr=written) as server:
        url = line(server)
        wait_ready(url)
        asyncio.run(main(server.pid, url))
        pids = descendants(server.pid)
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0 and not living(pids)
    assert "Traceback" not in log.read_text()
