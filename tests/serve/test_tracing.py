"""Spans of requests, by the conventions for generative AI."""

import sys
from collections.abc import AsyncGenerator

import pytest
from fake_engine import FakeEngine, in_pieces
from metrics_client import client
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import StatusCode

from fastslow.output import Piece
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.observe.tracing import ENDPOINTS, spans_to, tracing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRET = "a prompt that nobody else may read"


def spans(engine: FakeEngine, headers: dict[str, str] | None = None) -> list[ReadableSpan]:
    """The spans of a chat, and of a look at the health."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with client(engine, observers=[spans_to(provider)]) as ours:
        body = {"messages": [{"role": "user", "content": SECRET}], "stream": True}
        ours.post("/v1/chat/completions", headers=headers or {}, json=body)
        ours.get("/health")
    return list(exporter.get_finished_spans())


def test_a_span_for_each_request_that_asks_the_model() -> None:
    (span,) = spans(FakeEngine(in_pieces))
    assert span.name == "chat tiny"
    found = dict(span.attributes or {})
    expected = {
        "gen_ai.operation.name": "chat", "gen_ai.request.model": "tiny",
        "gen_ai.response.finish_reasons": ("stop",), "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 6, "gen_ai.usage.cache_read.input_tokens": 4,
        "http.response.status_code": 200, "http.route": "/v1/chat/completions", "fastslow.mode": "deep",
        "fastslow.accepted": 3,
    }  # fmt: skip
    assert {name: found.get(name) for name in expected} == expected
    known = {value for value in vars(gen_ai_attributes).values() if isinstance(value, str)}
    assert {name for name in found if name.startswith("gen_ai.")} <= known and SECRET not in span.to_json()


def test_a_trace_continues_the_client_s() -> None:
    (span,) = spans(FakeEngine(), {"traceparent": PARENT, "tracestate": "a=b"})
    assert span.context is not None and span.parent is not None
    assert f"{span.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]


@pytest.mark.parametrize("header", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 5000])
def test_a_header_that_is_no_trace_begins_a_new_one(header: str) -> None:
    (span,) = spans(FakeEngine(), {"traceparent": header})
    assert span.parent is None


def test_what_failed_is_an_error() -> None:
    async def script(request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        yield Piece(token_ids=[1])
        raise RuntimeError("it broke")

    (span,) = spans(FakeEngine(script))
    assert span.status.status_code == StatusCode.ERROR and dict(span.attributes or {})["error.type"] == "error"


def test_nothing_is_traced_without_an_endpoint_or_its_package(
    monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    assert tracing() == [] and logged == []
    monkeypatch.setenv(ENDPOINTS[0], "http://127.0.0.1:9/v1/traces")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)
    assert tracing() == [] and len(logged) == 1 and "pip install" in logged[0]
