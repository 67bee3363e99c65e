"""Replicas on this machine: engines in processes of this server, as many as the load asks for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from loguru import logger

from fastslow.output import Piece
from fastslow.serve.api.engine import ModelCard, NotReady, called
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.engines.process.child_process import Heartbeat
from fastslow.serve.engines.process.client import EngineClient
from fastslow.serve.engines.replica_settings import ReplicaSettings, ranks_of
from fastslow.serve.engines.routing.report import ReplicaReport, read_report
from fastslow.serve.engines.routing.scaling import ScalingSettings, ScalingState, replicas_wanted
from fastslow.serve.engines.settings import VISIBLE, EngineSettings

LOOK = 1.0  # seconds between two reports of a replica
AGAIN = 30.0  # seconds until another replica is started in place of one that was given up
HUNG = 3  # times `hung_seconds` without an answer, after which a replica is killed


@dataclass(eq=False, slots=True)
class _Replica:
    """A process. When it ends, its successor has another name: its caches are empty, and its counters at 0."""

    number: int
    place: int  # the lowest that no other replica has
    client: EngineClient
    start: asyncio.Task[None]
    report: ReplicaReport | None = None
    leaving: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return f"engine-{self.number}.{self.client.restarts}"

    @property
    def runs(self) -> bool:
        return self.client.loaded and self.leaving is None


class ProcessReplicas:
    """`Replicas` in processes of this server, which nobody else can reach. They end with it. scaling: when there are
    more and fewer, where their number is a range."""

    def __init__(
        self,
        settings: EngineSettings,
        replicas: ReplicaSettings,
        scaling: ScalingSettings | None = None,
    ) -> None:
        self._ranks = ranks_of(settings.options)
        self._settings = replace(settings, threads=max(1, replicas.cpus // self._ranks))
        self._each = replicas
        self._scaling = scaling or ScalingSettings()
        self._scaling = replace(self._scaling, least=replicas.least, most=replicas.most)
        self._state = ScalingState()
        every = replicas.health_seconds
        self._heartbeat = Heartbeat(every, missed=round(HUNG * replicas.hung_seconds / every))
        self._replicas: list[_Replica] = []
        self._started = 0  # replicas, ever
        self._failed_at = -AGAIN  # when one was given up last
        self._watching: asyncio.Task[None] | None = None
        self.gave_up: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def running(self) -> Mapping[str, ReplicaReport | None]:
        return {one.name: one.report for one in self._replicas if one.runs}

    @property
    def silent(self) -> Collection[str]:
        return [one.name for one in self._replicas if one.runs and not one.client.ready]

    @property
    def starting(self) -> int:
        return sum(not one.runs and one.leaving is None for one in self._replicas)

    @property
    def pids(self) -> list[int]:
        """The processes of those that run."""
        return [one.client.pid for one in self._replicas if one.runs and one.client.pid]

    async def start(self) -> ModelCard:
        for _ in range(self._each.least):
            self._add()
        tries = [one.start for one in self._replicas]
        waiting = set(tries)
        while waiting:
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if any(one.runs for one in self._replicas):
                self._watching = asyncio.create_task(self._watch())
                return next(one for one in self._replicas if one.runs).client.card
        errors = [error for one in tries if (error := one.exception()) is not None]
        raise errors[0] if errors else RuntimeError("the replicas ended while they loaded")

    async def stream(self, name: str, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        replica = self._named(name)
        if not replica.runs:
            raise NotReady("the replica takes no more requests", refused=True)
        async with aclosing(replica.client.stream(request)) as pieces:
            async for piece in pieces:
                yield piece

    async def call(self, name: str, method: str, *arguments: Any) -> Any:
        return await called(self._named(name).client, method, arguments)

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        tasks = [task for one in self._replicas for task in (one.start, one.leaving) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(one.client.close() for one in self._replicas))
        self._replicas = []

    def _named(self, name: str) -> _Replica:
        for one in self._replicas:
            if one.name == name:
                return one
        raise NotReady("the replica is gone", refused=True)

    def _add(self) -> None:
        place = next(n for n in count() if all(n != one.place for one in self._replicas))
        settings = self._settings
        if settings.options.get("device") in VISIBLE:  # without a number
            first = place * self._ranks
            settings = replace(settings, devices=list(range(first, first + self._ranks)))
        client = EngineClient(settings, heartbeat=self._heartbeat)
        self._started += 1
        start = asyncio.create_task(client.start())
        self._replicas.append(_Replica(self._started, place, client, start))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            try:
                await asyncio.gather(*(self._ask_report(one) for one in self._replicas if one.runs))
                self._drop()
                present = [one for one in self._replicas if one.leaving is None]
                self._scale(present)
            except Exception:  # noqa: BLE001 - the next look may be better
                logger.exception("the replicas could not be looked at")
                continue
            if not present and not self.gave_up.done():
                self.gave_up.set_result("no replica can be started")

    async def _ask_report(self, one: _Replica) -> None:
        with suppress(TimeoutError, NotReady):
            async with asyncio.timeout(LOOK):
                one.report = read_report(await one.client.call("report"))

    def _drop(self) -> None:
        """Forget those that have left, and those that cannot be started."""
        for one in list(self._replicas):
            error = one.start.exception() if one.start.done() else None
            if one.leaving is not None:
                if one.leaving.done():
                    self._replicas.remove(one)
            elif error is not None or one.client.gave_up.done():
                why = error if error is not None else one.client.gave_up.result()
                logger.error("replica {} is given up: {}", one.name, why)
                self._failed_at = time.monotonic()
                self._replicas.remove(one)

    def _scale(self, present: list[_Replica]) -> None:
        reports = [one.report for one in present if one.runs and one.report is not None]
        there, now = len(present), time.monotonic()
        wanted, self._state = replicas_wanted(reports, there, self._state, self._scaling, now)
        more = wanted > there and now - self._failed_at > AGAIN
        if more or wanted < there:
            logger.info("{} replicas become {}", there, wanted)
        if more:
            for _ in range(wanted - there):
                self._add()
        elif wanted < there:
            newest = present[-1]
            newest.leaving = asyncio.create_task(newest.client.close(self._each.drain))
