"""A server whose engines crash under the word "poison": chaos_program.py FOLDER REPLICAS, where 0 is one engine."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from pathlib import Path

from serve_engines import settings_of

from fastslow.output import Piece
from fastslow.serve.api.engine import Engine, StartedEngine
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.app import create_app
from fastslow.serve.engines import process_replicas
from fastslow.serve.engines.continued_engine import ContinuedEngine
from fastslow.serve.engines.process import child_process
from fastslow.serve.engines.process.child_process import Heartbeat
from fastslow.serve.engines.process.client import EngineClient, Restarts
from fastslow.serve.engines.replica_settings import ReplicaSettings
from fastslow.serve.engines.routed_engine import RoutedEngine
from fastslow.serve.http.listen import address_of, listen, run
from fastslow.serve.http.server import serve

OFTEN = Restarts(most=10**6, first=0.05, longest=0.05)
EVERY, HUNG = 0.5, 2.0  # seconds; a stopped process is killed after three times HUNG


def spawn(its: socket.socket) -> subprocess.Popen[bytes]:
    """As `child_process._spawn`, of the engine below."""
    return subprocess.Popen(
        [sys.executable, "-c", "import chaos_program; chaos_program.child()", str(its.fileno())],
        stdin=subprocess.DEVNULL, stdout=2, pass_fds=[its.fileno()],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}, process_group=0,
    )  # fmt: skip


def child() -> None:
    """The engine's process."""
    from fastslow.serve.engines.local import LocalEngine
    from fastslow.serve.engines.process.child import main as serve_child

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    whole = LocalEngine.stream

    async def stream(self: LocalEngine, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        if "poison" in str(request.prompt):
            os.kill(os.getpid(), signal.SIGSEGV)
        async with aclosing(whole(self, request)) as pieces:
            async for piece in pieces:
                yield piece

    LocalEngine.stream = stream  # type: ignore[method-assign]
    serve_child()


async def main(folder: Path, replicas: int) -> None:
    child_process._spawn = spawn
    settings = settings_of(folder, max_waiting=64)
    if replicas:
        vars(process_replicas)["EngineClient"] = partial(EngineClient, restarts=OFTEN)
        each = ReplicaSettings(replicas, replicas, health_seconds=EVERY, hung_seconds=HUNG)
        started: StartedEngine
        several = started = RoutedEngine(process_replicas.ProcessReplicas(settings, each))
        engine: Engine = ContinuedEngine(several)
    else:
        engine = started = EngineClient(settings, OFTEN, Heartbeat(EVERY, missed=round(3 * HUNG / EVERY)))
    with listen("127.0.0.1", 0) as listener:
        print(address_of(listener), flush=True)
        await serve(create_app(engine), engine, listener, 5.0, lambda card: None, started)


if __name__ == "__main__":
    run(main(Path(sys.argv[1]), int(sys.argv[2])))
