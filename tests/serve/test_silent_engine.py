"""An engine's process that says nothing for a while: it gets no requests, and its last figures stay."""

import asyncio
import time
from pathlib import Path
from typing import Any, cast

import pytest
from loops import within
from routing_tools import figures_of
from serve_engines import answer_of, asked, settings_of, until
from serve_tools import client_of

from fastslow.serve.api.engine import NotReady
from fastslow.serve.app import create_app
from fastslow.serve.engines.process.child_process import Heartbeat
from fastslow.serve.engines.process.client import EngineClient
from fastslow.serve.engines.process.connection import EngineConnection
from fastslow.serve.engines.replica_stats import StatsSum

SILENT = "the engine has said nothing for 3 s or more"


class Link:
    """Of a process that answers when a test says so.

    Args:
        answer: none of an engine that broke in a process that lives on.
    """

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.answers = asyncio.Event()
        self.why_silent = ""
        self.figures: dict[str, int] = {}
        self.heard = 0.0

    async def call(self, kind: str) -> Any:
        await self.answers.wait()
        return self.answer


@within()
async def test_a_process_is_silent_until_it_answers(logged: list[str]) -> None:
    link = Link({"running": 3})
    heartbeat = Heartbeat(every=0.01, silent=3, missed=100_000)
    watching = asyncio.create_task(heartbeat.watch(cast(EngineConnection, link)))
    await until(lambda: bool(link.why_silent))
    assert link.why_silent == "the engine has said nothing for 0.03 s or more" and not link.figures
    link.answers.set()
    await until(lambda: not link.why_silent)
    assert link.figures == {"running": 3} and link.heard > 0
    link.lost.set_result(None)
    assert await watching == ""
    assert [line.strip() for line in logged] == [
        "the engine has said nothing for 0.03 s or more; it gets no requests meanwhile",
        "the engine answers again",
    ]


@within()
async def test_a_process_that_stays_silent_or_whose_engine_broke_is_ended() -> None:
    link = cast(EngineConnection, Link())
    assert await Heartbeat(0.01, 1, missed=4).watch(link) == "answered nothing for 0.04 s"
    cast(Link, link).answers.set()
    assert await Heartbeat(every=60.0).watch(link) == "lives on without its engine, which broke"


@within()
async def test_a_silent_engine_is_not_ready_and_its_last_figures_stay() -> None:
    engine = EngineClient(settings_of(Path("x")))
    link = engine._connection = EngineConnection()
    link.why_silent = SILENT
    async with client_of(create_app(engine)) as http:
        for figures, status in (({}, 503), (figures_of(2), 200)):
            link.figures, link.heard = figures, time.monotonic() - 7
            answer = await http.get("/v1/stats")
            assert answer.status_code == status
        found = answer.json()
        assert found["tokens"] == 20 and 7 <= found["age_seconds"] < 60
        ready = await http.get("/ready")
        assert ready.status_code == 503 and ready.json()["why"] == SILENT
        with pytest.raises(NotReady, match=SILENT) as raised:
            await answer_of(engine, asked())
        assert raised.value.refused
        link.why_silent = ""
        assert (await http.get("/ready")).status_code == 200


@within()
async def test_figures_that_do_not_come_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the heartbeat has seen that."""
    monkeypatch.setattr("fastslow.serve.engines.process.client.STATS", 0.01)

    class Slow(EngineConnection):
        async def call(self, method: str, *arguments: Any) -> Any:
            await asyncio.sleep(60)

    engine = EngineClient(settings_of(Path("x")))
    link = engine._connection = Slow()
    with pytest.raises(NotReady, match=r"no figures within 0\.01 s"):
        await engine.stats()
    link.figures = figures_of(1)
    assert (await engine.stats())["tokens"] == 10


def test_the_age_of_several() -> None:
    sums = StatsSum()
    assert sums.of({})["age_seconds"] == 0.0
    found = sums.of({"a": figures_of(1) | {"age_seconds": 7.0}, "b": figures_of(2)})
    assert found["age_seconds"] == 7.0 and found["tokens"] == 30
    assert [one["age_seconds"] for one in found["replicas"].values()] == [7.0, 0.0]
    assert sums.of({"b": figures_of(2)}, missing=1)["age_seconds"] >= 7.0
    assert sums.of({"b": figures_of(2)})["age_seconds"] == 0.0
