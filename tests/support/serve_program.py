"""A server with one route of its own, for tests that send it signals: serve_program.py FOLDER DRAIN."""

import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from loguru import logger
from serve_engines import asked, settings_of

from fastslow.serve.api.engine import Engine, ModelCard, NotReady
from fastslow.serve.app import create_app
from fastslow.serve.engines.process.client import EngineClient
from fastslow.serve.http.listen import address_of, listen, run
from fastslow.serve.http.server import serve


async def stream(request: Request, tokens: int) -> Response:
    """The answer's text, as it is made."""
    engine: Engine = request.app.state.engine
    if not engine.ready:
        return JSONResponse({}, 503, {"retry-after": "1"})
    return StreamingResponse(_texts(engine, tokens))


async def _texts(engine: Engine, tokens: int) -> AsyncIterator[str]:
    try:
        async for piece in engine.stream(asked(tokens=tokens)):
            yield f"{len(piece.token_ids)}\n" if piece.output is None else "over\n"
    except NotReady as error:
        yield f"{error}\n"


async def main() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup, under which tests may run, has ignored
    logger.enable("fastslow")
    with listen("127.0.0.1", 0) as listener:
        engine = EngineClient(settings_of(Path(sys.argv[1])))
        app = create_app(engine)
        app.add_api_route("/stream", stream)
        print(address_of(listener), flush=True)

        def ready(card: ModelCard) -> None:
            print(card.name, engine.pid, flush=True)

        await serve(app, engine, listener, float(sys.argv[2]), ready, engine)


if __name__ == "__main__":
    run(main())
