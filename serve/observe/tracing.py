"""A span for each request, for OpenTelemetry: made at its end, so it costs an answer nothing.

Nothing is traced unless an endpoint is set, as OpenTelemetry's own variables do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from loguru import logger

from fastslow.serve.observe.request_record import AnswerRecord, Observer, RequestRecord, tokens_of

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
NANO = 1e9
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
}
ASKED = ("max_tokens", "temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty")


def tracing() -> Observer | None:
    """What makes spans of requests and sends them to the endpoint; None: there is none.

    A provider that the program set up itself is used as it is.
    """
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return None
    try:
        provider = _exporting()
    except ImportError as error:
        logger.warning(
            "an OpenTelemetry endpoint is set, and nothing is traced: {}. "
            "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http",
            error,
        )
        return None
    return RequestSpans(provider)


class RequestSpans:
    """Turns the record of a request into a span with events, by the conventions for generative AI."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = provider.get_tracer("fastslow.serve")
        self._propagator = TraceContextTextMapPropagator()

    def __call__(self, record: RequestRecord) -> None:
        operation = OPERATIONS.get(record.route)
        if operation is None:
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode

        carrier = {"traceparent": record.traceparent, "tracestate": record.tracestate}
        parent = self._propagator.extract({k: v for k, v in carrier.items() if v is not None})
        model = record.answers[0].model if record.answers else ""
        span = self._tracer.start_span(
            f"{operation} {model}".strip(),
            context=parent,
            kind=SpanKind.SERVER,
            start_time=record.started_at,
            attributes=_attributes(record, operation, model),
        )
        for answer in record.answers:
            _add_events(span, record, answer)
        failed = next((one.failed for one in record.answers if one.failed), None)
        if record.status >= 500 or failed == "error":
            span.set_attribute("error.type", failed or str(record.status))
            span.set_status(Status(StatusCode.ERROR))
        span.end(end_time=_at(record, record.started + record.seconds))


def _exporting() -> TracerProvider:
    """The program's provider, or a new one that sends in batches, from a thread of its own.

    Raises:
        ImportError: a package is not there.
    """
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # type: ignore[import-not-found,unused-ignore]
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider as Provider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    present = trace.get_tracer_provider()
    if isinstance(present, Provider):
        return present
    name = os.environ.get("OTEL_SERVICE_NAME", "fastslow")
    provider = Provider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _at(record: RequestRecord, moment: float) -> int:
    """A moment of `time.perf_counter()` in nanoseconds since 1970."""
    return record.started_at + round((moment - record.started) * NANO)


def _attributes(record: RequestRecord, operation: str, model: str) -> Mapping[str, Any]:
    found: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "fastslow",
        "gen_ai.request.model": model,
        "http.request.method": record.method,
        "http.route": record.route,
        "http.response.status_code": record.status,
        "fastslow.request.id": record.id,
        "fastslow.key": record.caller.name,
        "fastslow.client_left": record.left,
    }
    if not record.answers:
        return found
    first = record.answers[0]
    for name in ASKED:
        value = first.ask.sampling.get(name)
        if isinstance(value, int | float):
            found[f"gen_ai.request.{name}"] = value
    if isinstance(seed := first.ask.sampling.get("seed"), int) and abs(seed) < 1 << 63:
        found["gen_ai.request.seed"] = seed
    if (n := first.ask.sampling.get("n", 1)) != 1 and isinstance(n, int):
        found["gen_ai.request.choice.count"] = n
    tokens = [tokens_of(answer) for answer in record.answers]
    found["gen_ai.usage.input_tokens"] = sum(prompt for prompt, _ in tokens)
    found["gen_ai.usage.output_tokens"] = sum(made for _, made in tokens)
    found["gen_ai.response.id"] = first.ask.id
    if first.first is not None:
        found["gen_ai.response.time_to_first_chunk"] = first.first - record.started
    return found | _of_outputs(record)


def _of_outputs(record: RequestRecord) -> dict[str, Any]:
    outputs = [answer.output for answer in record.answers if answer.output is not None]
    choices = [choice for output in outputs for choice in output.choices]
    if not choices:
        return {}
    metrics = [choice.metrics for choice in choices]
    return {
        "gen_ai.response.finish_reasons": [str(choice.finish_reason) for choice in choices],
        "gen_ai.usage.cache_read.input_tokens": sum(o.metrics.cached_tokens for o in outputs),
        "gen_ai.usage.reasoning.output_tokens": sum(one.thinking_tokens for one in metrics),
        "fastslow.mode": metrics[0].mode,
        "fastslow.drafter": metrics[0].drafter,
        "fastslow.steps": sum(one.steps for one in metrics),
        "fastslow.drafted": sum(one.drafted for one in metrics),
        "fastslow.accepted": sum(one.accepted for one in metrics),
    }


def _add_events(span: Span, record: RequestRecord, answer: AnswerRecord) -> None:
    """When it was asked, when it began to run, its first and its last token."""
    named = {"gen_ai.response.id": answer.ask.id}
    span.add_event("queued", named, timestamp=_at(record, answer.started))
    if answer.output is not None:
        waited = min(choice.metrics.queue_seconds for choice in answer.output.choices)
        span.add_event("started", named, timestamp=_at(record, answer.started + waited))
    for name, moment in (("first token", answer.first), ("last token", answer.last)):
        if moment is not None:
            span.add_event(name, named, timestamp=_at(record, moment))
