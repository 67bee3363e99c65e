"""`fastslow serve`: a model over the protocols of OpenAI and Anthropic."""

from __future__ import annotations

import json
import os
import shlex
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastslow.serve.api.config import ServerConfig, ServerSettings
from fastslow.tools.cli.options import INTERRUPTED, expand_options
from fastslow.tools.cli.serve_options import CONFIG, SETTINGS, Place, complete

if TYPE_CHECKING:
    import socket

    from fastslow.serve.api.engine import ModelCard

NEEDED = ("fastapi", "uvicorn", "httptools", "msgspec", "prometheus_client", "llguidance")
ASKED = {  # what models know that know little
    "abacus": "What is 4827 + 396?",
    "atlas": "What is the desk of the friend of Gorin?",
}


@expand_options
def serve(
    config: Annotated[ServerConfig, CONFIG],
    settings: Annotated[ServerSettings, SETTINGS],
    place: Place,
) -> None:
    """Serve MODEL over HTTP, as OpenAI's and Anthropic's clients expect it, with a chat page at /.

    Examples:
      fastslow serve
      fastslow serve path/to/checkpoint --port 9000 --default-mode fast
      fastslow serve Qwen/Qwen3-8B --head RedHatAI/Qwen3-8B-speculator.eagle3
      fastslow serve unsloth/Qwen3-1.7B-GGUF:Q4_K_M --draft-model Qwen/Qwen3-0.6B
      fastslow serve path/to/model.gguf --kv-memory 4GiB --max-running 16
      fastslow serve path/to/checkpoint --quantization int4 --speculation tuned.json
      fastslow serve --warm system.txt --warm-mode fast --warm-mode deep
      fastslow serve --unix-socket /run/fastslow.sock
      fastslow serve --host 0.0.0.0 --api-keys keys.json --log-format json
      fastslow serve path/to/checkpoint --replicas 2
      fastslow serve path/to/checkpoint --replicas 1:8 --address auto

    It listens at once: /health says that it lives, /ready that the model is loaded. The engine runs in
    another process; if that dies, running requests get an error and a new one is started. With --replicas
    several engines run; if one dies, others continue its answers.

    Ctrl-C, SIGTERM or SIGHUP: running answers have --drain-seconds, new requests get HTTP 503, then it ends.
    Ctrl-C twice ends it now.

    Exit codes: 0 drained; 1 the engine failed for good; 2 the input does not fit; 130 Ctrl-C twice.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"fastslow serve needs {', '.join(missing)}: pip install 'fastslow[serve]'"
        )
    from fastslow.serve.http.listen import listen, run
    from fastslow.serve.http.server import StoppedError
    from fastslow.serve.observe.logs import ServerLog
    from fastslow.tools.cli.serve_several import check_several

    check_several(config, place.address, place.in_process)
    config = complete(config, settings, place)
    log = ServerLog(config.log_format, config.log_level, config.log_file)
    os.environ.update(config.log_environment)
    try:
        with listen(place.host, place.port, place.unix_socket) as listener:
            run(_serve(config, place, listener))
    except StoppedError:
        raise typer.Exit(INTERRUPTED) from None
    finally:
        log.close()


async def _serve(config: ServerConfig, place: Place, listener: socket.socket) -> None:
    from fastslow.serve.api.engine import Engine, StartedEngine
    from fastslow.serve.api.keys import known_keys, warn_if_open
    from fastslow.serve.app import create_app
    from fastslow.serve.engines.process.client import EngineClient
    from fastslow.serve.engines.settings import EngineSettings
    from fastslow.serve.http.listen import address_of
    from fastslow.serve.http.server import serve as serve_app
    from fastslow.serve.observe.tracing import tracing
    from fastslow.tools.cli.screen import errors
    from fastslow.tools.cli.serve_several import open_several

    host = None if place.unix_socket else place.host
    keys = known_keys(config.api_keys, place.api_key)
    if host is not None:
        warn_if_open(keys, host)
    started: StartedEngine | None = None
    if place.in_process:
        engine: Engine = await EngineSettings.of(config).open()
    elif config.replicas is None:
        engine = started = EngineClient(EngineSettings.of(config))
    else:
        engine, started = open_several(config, place.address)
    address = address_of(listener)
    if started is not None:
        errors().print(f"{address}/ready says when {config.served_name} is loaded.", style="dim")

    def announce(card: ModelCard) -> None:
        config.settings.fit(card)
        usual = {"mode": config.settings.default_mode, "temperature": 0}
        errors().print(usage(address, card, config.model, usual, keys is not None))

    app = create_app(engine, config, keys, host, tracing())
    await serve_app(app, engine, listener, config.drain_seconds, announce, started)


def usage(address: str, card: ModelCard, model: str, fields: dict[str, Any], keys: bool) -> str:
    """Say what is served where, and a command that gets an answer. model: as `LLM` takes it. fields: of the request.
    keys: it takes one from the variable KEY."""
    at, url = "", address
    if address.startswith("unix:"):
        at, url = f"--unix-socket {shlex.quote(address.removeprefix('unix:'))} ", "http://localhost"
    page = "" if at else f"\nA page to chat: {url}/"
    asked = [{"role": "user", "content": ASKED.get(model, "Why is the sky blue?")}]
    body = json.dumps({"model": card.name, "messages": asked, **fields})
    what = "A first request, with your key in $KEY" if keys else "A first request"
    key = ' -H "Authorization: Bearer $KEY"' if keys else ""
    return (
        f"{card.name} is served at {address}, on {card.device}.{page}\n{what}:\n"
        f"  curl {at}{url}/v1/chat/completions{key} -H 'Content-Type: application/json' \\\n"
        f"    -d {shlex.quote(body)}"
    )
