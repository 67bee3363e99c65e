"""A span for each request, for OpenTelemetry: made at its end, so it costs an answer nothing.

Nothing is traced unless an endpoint is set, as OpenTelemetry's own variables do.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

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
ASKED = {
    **{f"gen_ai.request.{name}": name for name in ("max_tokens", "temperature", "top_p", "top_k")},
    "gen_ai.request.frequency_penalty": "frequency_penalty",
    "gen_ai.request.presence_penalty": "presence_penalty",
    "gen_ai.request.seed": "seed",
    "gen_ai.request.choice.count": "n",
}
NAMES = {
    "method": "http.request.method",
    "route": "http.route",
    "status": "http.response.status_code",
    "id": "fastslow.request.id",
    "first_token_seconds": "gen_ai.response.time_to_first_chunk",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "tokens": "gen_ai.usage.output_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "finish_reasons": "gen_ai.response.finish_reasons",
}
"""Fields of the log line that the conventions have a name for."""


def tracing() -> list[Observer]:
    """What makes spans of requests and sends them to the endpoint; nothing where none is set.

    A provider that the program set up itself is used as it is.
    """
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return []
    try:
        from opentelemetry import trace
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
    present = trace.get_tracer_provider()
    if isinstance(present, Provider):
        return [RequestSpans(present)]
    name = os.environ.get("OTEL_SERVICE_NAME", "fastslow")
    provider = Provider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return [RequestSpans(provider)]


class RequestSpans:
    """Turns the record of a request into a span with events, by the conventions for generative AI."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("fastslow.serve")

    def __call__(self, record: RequestRecord) -> None:
        operation = OPERATIONS.get(record.route)
        if operation is None:
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        def at(moment: float) -> int:
            """A moment of `time.perf_counter()` in nanoseconds since 1970."""
            return record.started_at + round((moment - record.started) * 1e9)

        carrier = {"traceparent": record.traceparent, "tracestate": record.tracestate}
        given = {name: value for name, value in carrier.items() if value is not None}
        model = record.answers[0].model if record.answers else ""
        span = self._tracer.start_span(
            f"{operation} {model}".strip(),
            context=TraceContextTextMapPropagator().extract(given),
            kind=SpanKind.SERVER,
            start_time=record.started_at,
            attributes=_attributes(record, operation, model),
        )
        for answer in record.answers:
            moments = {"queued": answer.started, "started": None}
            if answer.output is not None:
                waited = min(choice.metrics.queue_seconds for choice in answer.output.choices)
                moments["started"] = answer.started + waited
            moments |= {"first token": answer.first, "last token": answer.last}
            for name, moment in moments.items():
                if moment is not None:
                    span.add_event(name, {"gen_ai.response.id": answer.ask.id}, at(moment))
        failed = next((answer.failed for answer in record.answers if answer.failed), None)
        if record.status >= 500 or failed == "error":
            span.set_attribute("error.type", failed or str(record.status))
            span.set_status(Status(StatusCode.ERROR))
        span.end(end_time=at(record.started + record.seconds))


def _attributes(record: RequestRecord, operation: str, model: str) -> dict[str, Any]:
    """What the log line has, by the conventions' names where there are some, and what was asked."""
    fields = {**fields_of(record), "id": record.id}
    found = {NAMES.get(name, f"fastslow.{name}"): value for name, value in fields.items()}
    found |= {"gen_ai.operation.name": operation, "gen_ai.provider.name": "fastslow"}
    found["gen_ai.request.model"] = model
    if record.answers:
        first = record.answers[0]
        found["gen_ai.response.id"] = first.ask.id
        for attribute, field in ASKED.items():
            value = first.ask.sampling.get(field)
            if isinstance(value, int | float) and abs(value) < 1 << 63:
                found[attribute] = value
    return found
