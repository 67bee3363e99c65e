"""The server that is measured: as `fastslow serve` runs it, with a route for what the engine counts.

    program.py '{"model": ..., "options": {...}}'

It prints its address, and once the model is loaded the engine's process.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from fastslow.serve.api.engine import ModelCard
from fastslow.serve.engines.process.client import EngineClient
from fastslow.serve.engines.settings import EngineSettings
from fastslow.serve.http.app import create_app
from fastslow.serve.http.listen import address_of, listen, run
from fastslow.serve.http.server import serve

DRAIN = 10.0  # seconds


async def main() -> None:
    asked = json.loads(sys.argv[1])
    with listen("127.0.0.1", 0) as listener:
        engine = EngineClient(EngineSettings(asked["model"], "measured", asked["options"]))
        app = create_app(engine)

        async def stats() -> dict[str, Any]:
            """The engine's statistics and its process."""
            return {"pid": engine.pid, **await engine.stats()}

        app.add_api_route("/stats", stats)
        print(address_of(listener), flush=True)

        def ready(card: ModelCard) -> None:
            print(engine.pid, flush=True)

        await serve(app, engine, listener, DRAIN, ready, engine)


if __name__ == "__main__":
    run(main())
