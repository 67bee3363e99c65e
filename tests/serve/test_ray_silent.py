"""A replica that stands still, as behind a cable that was pulled: its answers go on elsewhere."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray_engines import kill, replica_pids
from serve_engines import answer_of, asked, settings_of, until, write_served

from fastslow.output import Piece
from fastslow.serve.api.ask import Ask
from fastslow.serve.engines.continued_engine import ContinuedEngine
from fastslow.serve.ray import engine, replica
from fastslow.serve.ray.cluster import Cluster
from fastslow.serve.ray.deployed import OwnDeployment
from fastslow.serve.ray.engine import RayEngine
from fastslow.serve.ray.messages import Accepted, Bunch, item_of, packed_ask
from fastslow.serve.ray.replica import EngineReplica
from fastslow.serve.ray.replicas import ReplicaSettings
from fastslow.serve.ray.routed import control


class Slow:
    """An engine whose answers take a while."""

    async def stream(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        await asyncio.sleep(0.3)
        yield Piece(text="at last", token_ids=[1])


def test_a_replica_says_that_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "ALIVE", 0.05)
    own: Any = SimpleNamespace(_id="this", _engine=Slow())
    own._fill = partial(EngineReplica._fill, own)

    async def main() -> None:
        stream = EngineReplica.stream(own, control("one"), packed_ask(asked()))
        items = [item_of(data) async for data in stream]
        accepted, *silent, last = items
        assert isinstance(accepted, Accepted) and accepted.replica == "this"
        assert len(silent) > 2 and all(item == Bunch([]) for item in silent)
        assert isinstance(last, Bunch) and last.pieces[0].text == "at last"

    asyncio.run(main())


class OutOfTime:
    """An engine whose own limit of time ends an answer."""

    async def stream(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        yield Piece(text="a", token_ids=[1])
        raise TimeoutError("the engine has a limit of its own")


def test_an_error_about_time_is_no_pause() -> None:
    own: Any = SimpleNamespace(_id="this", _engine=OutOfTime())
    own._fill = partial(EngineReplica._fill, own)

    async def main() -> None:
        stream = EngineReplica.stream(own, control("one"), packed_ask(asked()))
        *_, last = [item_of(data) async for data in stream]
        assert isinstance(last, Bunch) and last.failure is not None

    asyncio.run(asyncio.wait_for(main(), 10))


@pytest.mark.slow
def test_an_answer_goes_on_where_its_replica_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SILENT", 3.0)
    ask = asked("long", 3000, sampling={"temperature": 0})

    async def main() -> None:
        settings = settings_of(write_served(tmp_path))
        # Ray's own look at replicas would take longer than this test
        two = ReplicaSettings(least=2, most=2, hung_seconds=60.0)
        several = RayEngine(OwnDeployment(Cluster(cpus=2), settings, two))
        await several.start()
        try:
            await until(lambda: several.replicas.running == 2)
            continued = ContinuedEngine(several)
            right = await answer_of(continued, ask)
            pieces = []
            before = {pid: _ticks(pid) for pid in replica_pids()}
            async for piece in continued.stream(ask):
                pieces.append(piece)
                if len(pieces) == 20:
                    busy = max(before, key=lambda pid: _ticks(pid) - before[pid])
                    os.kill(busy, signal.SIGSTOP)
            assert pieces[-1].output is not None
            assert pieces[-1].output.token_ids == right.token_ids
            assert "".join(piece.text for piece in pieces) == right.text
            assert continued.continued == 1
            kill(busy)
        finally:
            await several.close()

    asyncio.run(main())


def _ticks(pid: int) -> int:
    """What a process has worked, in ticks of the system's clock."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
