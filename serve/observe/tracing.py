"""A span for each request, for OpenTelemetry: made at its end, so it costs an answer nothing.

Nothing is traced unless an endpoint is set, as OpenTelemetry's own variables do.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from loguru import logger

from fastslow.serve.observe.request_log import fields_of
from fastslow.serve.observe.request_record import Observer, RequestRecord

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
}
NAMES = {
    "method": "http.request.method",
    "route": "http.route",
    "status": "http.response.status_code",
    "first_token_seconds": "gen_ai.response.time_to_first_chunk",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "tokens": "gen_ai.usage.output_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "finish_reasons": "gen_ai.response.finish_reasons",
}
"""Fields of the log line that the conventions for generative AI have a name for."""


def tracing() -> list[Observer]:
    """Return the observer that makes spans of requests and sends them to the endpoint; [] where none is set."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return []
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # type: ignore[import-not-found,unused-ignore]
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider as Provider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        logger.warning(
            "an OpenTelemetry endpoint is set, and nothing is traced: {}. "
            "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http",
            error,
        )
        return []
    name = os.environ.get("OTEL_SERVICE_NAME", "fastslow")
    provider = Provider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return [spans_to(provider)]


def spans_to(provider: TracerProvider) -> Observer:
    """Turns the record of a request into a span of this provider."""
    from opentelemetry.trace import SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    tracer = provider.get_tracer("fastslow.serve")

    def observe(record: RequestRecord) -> None:
        operation = OPERATIONS.get(record.route)
        if operation is None:
            return
        model = record.answers[0].model if record.answers else ""
        fields = fields_of(record).items()
        span = tracer.start_span(
            f"{operation} {model}".strip(),
            context=TraceContextTextMapPropagator().extract(record.trace_headers),
            kind=SpanKind.SERVER,
            start_time=record.started_at,
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "fastslow",
                "gen_ai.request.model": model,
                "fastslow.request.id": record.id,
                **{NAMES.get(name, f"fastslow.{name}"): value for name, value in fields},
            },
        )
        failed = next((answer.failed for answer in record.answers if answer.failed), None)
        if record.status >= 500 or failed == "error":
            span.set_attribute("error.type", failed or str(record.status))
            span.set_status(Status(StatusCode.ERROR))
        span.end(end_time=record.started_at + round(record.seconds * 1e9))

    return observe
