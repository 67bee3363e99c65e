"""The application in front of a made-up engine, asked for completions, and what its metrics say."""

from typing import Any

from fake_engine import FakeEngine
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families as parse_text

from fastslow.serve.api.config import ServerConfig
from fastslow.serve.app import create_app

Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]
ASK = "/v1/completions"


def client(engine: FakeEngine | None = None, observers: Any = (), **config: Any) -> TestClient:
    app = create_app(engine or FakeEngine(), ServerConfig(**config), observers=observers)
    return TestClient(app, raise_server_exceptions=False)


def ask(ours: TestClient, prompt: str = "x", **fields: Any) -> Any:
    return ours.post(ASK, json={"prompt": prompt, **fields})


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
