"""An application with metrics around a made-up engine, and what it says."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from fake_engine import FakeEngine
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families as parse_text
from requests_made import made_request

from fastslow.serve.api.engine import Busy, NotReady
from fastslow.serve.api.limits import Limits
from fastslow.serve.http.middleware import RequestWatch
from fastslow.serve.observe.metrics import ServerMetrics, router
from fastslow.serve.observe.request_record import ObservedEngine

Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def client(engine: FakeEngine, by_key: bool = False) -> TestClient:
    app, limits = FastAPI(), Limits()
    observed = ObservedEngine(engine, limits)
    app.state.metrics = ServerMetrics(engine, limits, by_key)
    app.include_router(router)

    @app.post("/v1/ask/{name}")
    async def ask(name: str) -> dict[str, str]:
        try:
            async for _ in observed.stream(made_request(name, "a prompt")):
                pass
        except (Busy, NotReady, ValueError) as error:
            return {"error": str(error)}
        return {}

    @app.get("/stream")
    async def stream(request: Request) -> StreamingResponse:
        async def text() -> AsyncGenerator[str, None]:
            async for piece in observed.stream(made_request("1", "a prompt")):
                yield piece.text

        return StreamingResponse(text())

    app.add_middleware(RequestWatch, observers=[app.state.metrics.take])
    return TestClient(app)


def scraped(ours: TestClient) -> Values:
    """Samples by name and labels but for the model's."""
    found: Values = {}
    for family in parse_text(ours.get("/metrics").text):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k != "model_name"}
            assert sample.labels["model_name"] == "tiny"
            if not sample.name.endswith("_created"):
                found[sample.name, tuple(sorted(labels.items()))] = sample.value
    return found
