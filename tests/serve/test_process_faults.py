"""Faults around the engine's process: it dies, the server dies, a reader is slow."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from loops import within
from processes_served import program
from ray_engines import living
from serve_engines import settings_of, until

from fastslow.serve.engines.process.client import EngineClient, Restarts


@within()
async def test_an_engine_that_broke_is_not_ready(folder: Path) -> None:
    def fatal() -> None:
        raise SystemExit

    engine = await settings_of(folder).open()
    assert engine.ready and not engine.broken
    engine._llm.llm._worker.ask(fatal)
    await until(lambda: engine.broken)
    assert not engine.ready and engine.why_not_ready == "the engine broke"
    await engine.close()
    assert engine.broken


@pytest.mark.slow
@pytest.mark.parametrize(("killed", "how"), [(True, "was killed by SIGKILL"), (False, "ended with exit code 0")])
@within()
async def test_one_that_ends_again_and_again_is_given_up(folder: Path, killed: bool, how: str) -> None:
    """The process ends, too, where only the connection is closed: a system may not say that the server is gone."""
    engine = EngineClient(settings_of(folder), Restarts(most=1))
    await engine.start()
    assert engine.pid is not None and engine._connection is not None
    if killed:
        os.kill(engine.pid, signal.SIGKILL)
    else:
        engine._connection.close()
    said = await engine.gave_up
    assert said == (f"the engine is given up: the engine's process {how}; that was end 1 within 600 s")
    assert not engine.ready and engine.why_not_ready == said
    await engine.close()


@pytest.mark.slow
@within()
async def test_one_that_dies_while_it_loads_is_one_sentence(folder: Path) -> None:
    engine = EngineClient(settings_of(folder))
    start = asyncio.create_task(engine.start())
    await until(lambda: engine.pid is not None)
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="was killed by SIGKILL while it loaded"):
        await start


PARENT = """
import asyncio, os, signal, sys
from pathlib import Path
from serve_engines import asked, first_of, settings_of
from fastslow.serve.engines.process.client import EngineClient

async def main():
    engine = EngineClient(settings_of(Path(sys.argv[1])))
    await engine.start()
    async for piece in engine.stream(asked(tokens=4000)):
        print(engine.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.slow
def test_it_ends_with_the_server(folder: Path) -> None:
    with program("-c", PARENT, folder, stderr=None) as server:
        said, _ = server.communicate(timeout=120)
    assert server.returncode == -signal.SIGKILL
    asyncio.run(until(lambda: not living([int(said)]), 20.0))
