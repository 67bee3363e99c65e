"""`fastslow serve`: a model behind the protocols of OpenAI and Anthropic."""

from __future__ import annotations

import json
import shlex
from importlib.util import find_spec
from typing import TYPE_CHECKING

import typer

from fastslow.engine.host.machine import cores
from fastslow.tools.cli.operation_options import OperationOptions
from fastslow.tools.cli.options import INTERRUPTED, expand_options
from fastslow.tools.cli.replica_options import ReplicaOptions
from fastslow.tools.cli.serve_options import ServeOptions

if TYPE_CHECKING:
    import socket

    from fastslow.serve.api.engine import ModelCard
    from fastslow.serve.engines.engine_settings import EngineSettings
    from fastslow.serve.observe.logs import ServerLog
    from fastslow.serve.ray.engine import RayEngine

NEEDED = ("fastapi", "uvicorn", "httptools", "msgspec", "prometheus_client", "llguidance")


@expand_options
def serve(options: ServeOptions, operations: OperationOptions, replicas: ReplicaOptions) -> None:
    """Serve MODEL over HTTP, as OpenAI's and Anthropic's clients expect it, with a chat page at /.

    Examples:
      fastslow serve
      fastslow serve path/to/checkpoint --port 9000 --default-mode fast
      fastslow serve path/to/model.gguf --kv-memory 4GiB --max-running 16
      fastslow serve path/to/checkpoint --quantization int4 --speculation tuned.json
      fastslow serve --warm system.txt --warm-mode fast --warm-mode deep
      fastslow serve --unix-socket /run/fastslow.sock
      fastslow serve --host 0.0.0.0 --api-keys keys.json --log-format json
      fastslow serve path/to/checkpoint --replicas 2
      fastslow serve path/to/checkpoint --replicas 1:8 --address auto

    It listens at once: /health says that it lives, /ready that the model is loaded. The engine runs in a
    process of its own; if that dies, running requests get an error and a new one is started. With --replicas
    several engines run, on Ray Serve; if one dies, others go on with what it was answering.

    Ctrl-C or SIGTERM: running answers have --drain-seconds, new requests get HTTP 503, then it ends.
    Ctrl-C twice ends it now.

    Exit codes: 0 drained; 1 the engine failed for good; 2 the input does not fit; 130 Ctrl-C twice.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"fastslow serve needs {', '.join(missing)}: pip install 'fastslow[serve]'"
        )
    if replicas.replicas is not None:
        if find_spec("ray") is None:
            raise ValueError("--replicas needs ray: pip install 'fastslow[ray]'")
        if options.in_process:
            raise ValueError("--in-process is for one engine: leave out --replicas")
    from fastslow.serve.http.listen import listen
    from fastslow.serve.http.loop import run
    from fastslow.serve.http.server import StoppedError
    from fastslow.tools.cli.serve_by_client import deploy_by_client

    log = operations.open_log()
    try:
        if replicas.by_client:
            deploy_by_client(options, operations, replicas)
            return
        with listen(options.host, options.port, options.unix_socket) as listener:
            run(_serve(options, operations, replicas, log, listener))
    except StoppedError:
        raise typer.Exit(INTERRUPTED) from None
    finally:
        log.close()


async def _serve(
    options: ServeOptions,
    operations: OperationOptions,
    replicas: ReplicaOptions,
    log: ServerLog,
    listener: socket.socket,
) -> None:
    from fastslow.serve.api.engine import Engine, StartedEngine
    from fastslow.serve.engines.continued_engine import ContinuedEngine
    from fastslow.serve.engines.process.engine_process import EngineClient
    from fastslow.serve.http.app import create_app
    from fastslow.serve.http.listen import address_of
    from fastslow.serve.http.server import serve as serve_app
    from fastslow.tools.cli.screen import errors

    address = address_of(listener)
    limits = options.server_settings()
    around = operations.settings(None if options.unix_socket else options.host, options.name, log)
    settings = options.engine_settings()
    behind: StartedEngine | None = None
    if options.in_process:
        engine: Engine = await settings.open()
    elif replicas.replicas is None:
        engine = behind = EngineClient(settings)
    else:
        several = _several(settings, replicas, options.drain_seconds, operations.log_environment())
        engine, behind = ContinuedEngine(several), several
    if behind is not None:
        errors().print(f"{address}/ready says when {options.name} is loaded.", style="dim")

    def announce(card: ModelCard) -> None:
        limits.fit(card.modes)
        errors().print(_usage(address, card), soft_wrap=True)

    app = create_app(engine, limits, around)
    await serve_app(app, engine, listener, options.drain_seconds, announce, behind)


def _several(
    settings: EngineSettings, replicas: ReplicaOptions, drain: float, environment: dict[str, str]
) -> RayEngine:
    """Engines on a Ray cluster."""
    from fastslow.serve.ray.cluster import Cluster
    from fastslow.serve.ray.deployed import OwnDeployment
    from fastslow.serve.ray.engine import RayEngine

    each = replicas.settings(dict(settings.options), drain)
    cluster = Cluster(replicas.address, max(cores(), each.most * each.cpus))
    return RayEngine(OwnDeployment(cluster, settings, each, environment))


def _usage(address: str, card: ModelCard) -> str:
    """Where it listens, and a first request."""
    at, url = "", address
    if address.startswith("unix:"):
        at, url = f"--unix-socket {shlex.quote(address.removeprefix('unix:'))} ", "http://localhost"
    page = "" if at else f"\nA page to chat: {url}/"
    asked = [{"role": "user", "content": "Why is the sky blue?"}]
    body = json.dumps({"model": card.name, "messages": asked, "mode": "fast", "temperature": 0})
    return (
        f"{card.name} is served at {address}, on {card.device}.{page}\nA first request:\n"
        f"  curl {at}{url}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        f"    -d {shlex.quote(body)}"
    )
