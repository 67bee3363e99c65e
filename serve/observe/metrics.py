"""/metrics: what the server did, for Prometheus."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter as Sums
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from fastslow.draft.registry import split_names
from fastslow.engine.params import CHANGED
from fastslow.output import Completion, Metrics, Output
from fastslow.serve.api.engine import Engine, NotReady
from fastslow.serve.api.limits import Limits
from fastslow.serve.api.mode_fields import OWN_NAME
from fastslow.serve.observe.logs import lost_lines
from fastslow.serve.observe.metric_table import TABLE, Metric
from fastslow.serve.observe.request_record import UNMATCHED, AnswerRecord, RequestRecord, tokens_of

MOST_VALUES = 200  # of one label; those that come later are "other"
OTHER = "other"
BATCHES = frozenset({"vllm:inter_token_latency_seconds"})
PATIENCE = 2.0  # seconds that a scrape waits for the engine
MOST_POSITIONS = 64  # of drafts
REASONS = {
    "stop": "stop",
    "length": "length",
    "loop": "length",
    "timeout": "abort",
    "cancelled": "abort",
}
UP, RUNNING = "fastslow:engine_up", "fastslow:http_requests_running"
router = APIRouter(include_in_schema=False)


class BatchHistogram(Collector):
    """Counts by model. What prometheus-client has takes a lock and a search for each value, which at the end of a
    long answer would hold up all others for milliseconds. bounds: upper ones of the buckets, ascending, without
    infinity."""

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:
        self._name, self._help, self._bounds = name, help, list(bounds)
        self._counts: dict[str, list[int]] = {}
        self._sums: Sums[str] = Sums()

    def observe_all(self, model: str, values: Sequence[float]) -> None:
        """Take values."""
        if not values:
            return
        counts = self._counts.setdefault(model, [0] * (len(self._bounds) + 1))
        for value in values:
            counts[bisect_left(self._bounds, value)] += 1
        self._sums[model] += sum(values)  # type: ignore[assignment]

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield the histogram that Prometheus reads: each bucket counts those below it, too."""
        family = HistogramMetricFamily(self._name, self._help, labels=("model_name",))
        for model, counts in self._counts.items():
            total, buckets = 0, []
            for bound, count in zip([*self._bounds, float("inf")], counts):
                total += count
                buckets.append((floatToGoString(bound), float(total)))  # type: ignore[no-untyped-call]
            family.add_metric([model], buckets, self._sums[model])
        yield family


class MetricRegistry:
    """The metrics of the table, to be counted up by name. model: (), the value of the label model_name; read when
    something is counted."""

    def __init__(self, model: Callable[[], str]) -> None:
        self.registry = CollectorRegistry()
        self._model = model
        self._metrics = {metric.name: self._made(metric) for metric in TABLE}
        self._values: dict[tuple[str, str], set[str]] = {}
        self._totals: dict[tuple[str, ...], float] = {}

    def add(self, name: str, value: float = 1, **labels: str) -> None:
        """Count up."""
        if value:
            self.labelled(name, **labels).inc(value)

    def add_up_to(self, name: str, total: float, **labels: str) -> None:
        """Count up by what another counter grew. Where that began anew, it began at zero: this one never falls."""
        key = name, *labels.values()
        before = self._totals.get(key, 0.0)
        self._totals[key] = total
        self.add(name, total - before if total >= before else total, **labels)

    def observe_all(self, name: str, values: Sequence[float]) -> None:
        """Many values of a histogram that has no labels."""
        self._metrics[name].observe_all(self._model(), values)

    def drop(self, name: str) -> None:
        """A gauge shows nothing: its value is not known now. Its labels make room for others."""
        self._metrics[name].clear()
        for key in [key for key in self._values if key[0] == name]:
            del self._values[key]

    def labelled(self, name: str, **labels: str) -> Any:
        """A metric with these values of its labels."""
        for label, value in labels.items():
            known = self._values.setdefault((name, label), set())
            if value not in known and len(known) >= MOST_VALUES:
                labels[label] = OTHER
            else:
                known.add(value)
        return self._metrics[name].labels(model_name=self._model(), **labels)

    def _made(self, metric: Metric) -> Any:
        if metric.name in BATCHES:
            batch = BatchHistogram(metric.name, metric.help, metric.buckets)
            self.registry.register(batch)
            return batch
        kinds = {"gauge": Gauge, "counter": Counter, "histogram": Histogram}
        more = {"buckets": metric.buckets} if metric.buckets else {}
        labels = ("model_name", *metric.labels)
        return kinds[metric.type](metric.name, metric.help, labels, registry=self.registry, **more)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """All metrics, as text or as OpenMetrics, whichever the client accepts."""
    found: ServerMetrics = request.app.state.metrics
    await found.look()
    encode, kind = choose_encoder(request.headers.get("accept", ""))
    if isinstance(encode, partial):
        # the names have nothing to escape; prometheus-client 0.26 would turn the colons of OpenMetrics' samples
        # into underscores, and no dashboard would find them
        encode = partial(encode, escaping="allow-utf-8")
    return Response(encode(found.registry), headers={"content-type": kind})


class ServerMetrics:
    """Counts answers and requests when they end, and looks at the engine in each scrape. by_key: whether API keys are
    labels. model: its name until it is loaded."""

    def __init__(
        self, engine: Engine, limits: Limits, by_key: bool = False, model: str = "loading"
    ) -> None:
        self._engine, self._limits, self._by_key, self._name = engine, limits, by_key, model
        self._counts = MetricRegistry(self._model)
        self.registry = self._counts.registry

    def take(self, record: RequestRecord) -> None:
        """A request is over."""
        labels = {"method": record.method, "route": record.route, "status": str(record.status)}
        self._counts.add("fastslow:http_requests", 1, **labels)
        self._counts.add("fastslow:clients_left", record.left)
        error, counted = record.error, any(answer.failed for answer in record.answers)  # below
        if error and error.status != 500 and record.route != UNMATCHED and not counted:
            self._counts.add("fastslow:refusals", reason=error.code or "invalid")
        for answer in record.answers:
            self._take_answer(answer, record.started)
        if not self._by_key:
            return
        key = record.caller.name
        self._counts.add("fastslow:key_requests", key=key)
        for answer in record.answers:
            for kind, tokens in zip(("prompt", "answer"), tokens_of(answer)):
                self._counts.add("fastslow:key_tokens", tokens, key=key, kind=kind)

    async def look(self) -> None:
        """Ask the engine what it does now. Where it does not say, there are no values, and engine_up is 0."""
        counts = self._counts
        counts.labelled(RUNNING).set(self._limits.running)
        counts.add_up_to("fastslow:log_lines_lost", lost_lines())
        for metric in _of("engine"):
            counts.add_up_to(metric.name, getattr(self._engine, metric.field, 0))
        for metric in TABLE:
            if metric.type == "gauge" and metric.name not in (UP, RUNNING):
                counts.drop(metric.name)
        try:
            async with asyncio.timeout(PATIENCE):
                stats = await self._engine.stats()
        except (NotReady, TimeoutError):
            counts.labelled(UP).set(0)
            return
        counts.labelled(UP).set(self._engine.ready)
        self._put_stats(stats)

    def _put_stats(self, stats: Mapping[str, Any]) -> None:
        counts = self._counts
        for metric in _of("stats"):
            value = stats.get(metric.field, 0)
            if metric.type == "counter":
                counts.add_up_to(metric.name, value)
            else:
                counts.labelled(metric.name).set(value)
        used = stats["pages_used"] / stats["pages"] if stats["pages"] else 0.0
        counts.labelled("vllm:kv_cache_usage_perc").set(used)
        for state in ("used", "cached", "free"):
            counts.labelled("fastslow:kv_pages", state=state).set(stats[f"pages_{state}"])
            places = stats.get(f"states_{state}", 0)
            counts.labelled("fastslow:running_states", state=state).set(places)
            windows = stats.get(f"windows_{state}", 0)
            counts.labelled("fastslow:window_pages", state=state).set(windows)
        replicas = stats.get("replicas", {})
        for metric in _of("replica"):
            for id in sorted(replicas)[:MOST_VALUES]:
                counts.labelled(metric.name, replica=id).set(replicas[id][metric.field])
        for state in ("running", "starting"):
            if (number := stats.get(f"replicas_{state}")) is not None:
                counts.labelled("fastslow:replicas", state=state).set(number)
        evicted: Sums[str] = Sums()
        for name, mode in stats["modes"].items():
            evicted[self._mode(name)] += mode["evicted_pages"]
        for name, pages in evicted.items():
            counts.add_up_to("fastslow:evicted_pages", pages, mode=name)

    def _model(self) -> str:
        try:
            return self._engine.card.name
        except NotReady:
            return self._name

    def _take_answer(self, answer: AnswerRecord, started: float) -> None:
        counts, output = self._counts, answer.output
        if answer.first is not None:
            first = answer.first - started
            counts.labelled("vllm:time_to_first_token_seconds").observe(first)
            gaps = answer.gaps or _mean_gaps(answer)
            counts.observe_all("vllm:inter_token_latency_seconds", gaps)
        if output is None:
            self._take_unfinished(answer)
            return
        mode = self._mode(output.metrics.mode)
        if answer.first is not None:
            counts.labelled("fastslow:time_to_first_token_seconds", mode=mode).observe(first)
        if answer.last is not None:
            counts.labelled("vllm:e2e_request_latency_seconds").observe(answer.last - started)
        self._take_prompt(output, mode)
        for choice in output.choices:
            self._take_choice(choice)

    def _take_unfinished(self, answer: AnswerRecord) -> None:
        """Its client left, it was refused, or the engine failed on it."""
        if answer.failed not in (None, "error"):
            self._counts.add("fastslow:refusals", reason=str(answer.failed))
            if answer.first is None:
                return
        self._counts.add("vllm:generation_tokens", answer.sent)
        reason = "abort" if answer.failed is None else "error"
        self._counts.add("vllm:request_success", finished_reason=reason)

    def _take_prompt(self, output: Output, mode: str) -> None:
        """A prompt counts once, however many answers it has."""
        cached = max(choice.metrics.cached_tokens for choice in output.choices)
        values = {"tokens": len(output.prompt_token_ids), "cached": cached, "hit": cached > 0}
        for metric in _of("prompt"):
            labels = {"mode": mode} if metric.labels else {}
            self._counts.add(metric.name, values[metric.field], **labels)

    def _take_choice(self, choice: Completion) -> None:
        counts, one = self._counts, choice.metrics
        mode = self._mode(one.mode)
        several = len(split_names(one.drafter)) > 2  # clients may join any
        labels = {"mode": mode, "drafter": "several" if several else one.drafter}
        for metric in _of("choice"):
            own = {label: labels[label] for label in metric.labels}
            counts.add(metric.name, getattr(one, metric.field), **own)
        counts.add("fastslow:answers", 1, **labels)
        reason = REASONS.get(choice.finish_reason, "error")
        counts.add("vllm:request_success", finished_reason=reason)
        counts.labelled("vllm:request_queue_time_seconds").observe(one.queue_seconds)
        if one.tokens > 1:
            counts.labelled("vllm:request_time_per_output_token_seconds").observe(one.tpot)
            counts.labelled("fastslow:time_per_output_token_seconds", mode=mode).observe(one.tpot)
        if one.thinking_ended is not None:
            counts.add("fastslow:thinking_ended", reason=one.thinking_ended)
        if one.escalated_at is not None:
            counts.add("fastslow:escalations", mode=mode)
        if one.target_kept is not None:
            counts.add("fastslow:targets", mode=mode, kept="yes" if one.target_kept else "no")
        self._take_drafts(one, mode)

    def _take_drafts(self, one: Metrics, mode: str) -> None:
        counts, drafts = self._counts, 0
        for place in range(min(max(one.runs, default=0), MOST_POSITIONS)):
            accepted = sum(run > place for run in one.runs)
            name = "vllm:spec_decode_num_accepted_tokens_per_pos"
            counts.add(name, accepted, position=str(place))
        for drafter, drawn in one.by_drafter.items():
            drafts += drawn.offered_at[0] if drawn.offered_at else 0
            counts.add("fastslow:draft_tokens", drawn.drafted, mode=mode, drafter=drafter)
            counts.add("fastslow:accepted_tokens", drawn.accepted, mode=mode, drafter=drafter)
            for place, accepted in enumerate(drawn.accepted_at[:MOST_POSITIONS]):
                name = "fastslow:accepted_tokens_per_position"
                counts.add(name, accepted, drafter=drafter, position=str(place))
        counts.add("vllm:spec_decode_num_drafts", min(drafts, one.steps))

    def _mode(self, name: str) -> str:
        """A preset's name, or two of an answer that continued in another mode; else `custom`."""
        known, parts = self._engine.card.modes, name.replace(CHANGED, "").split(">")
        return ">".join(parts) if all(part in known for part in parts) else OWN_NAME


@cache
def _of(source: str) -> list[Metric]:
    return [metric for metric in TABLE if metric.source == source]


def _mean_gaps(answer: AnswerRecord) -> list[float]:
    """Seconds between the steps of answers that came whole: as many as there were, all of the mean."""
    found: list[float] = []
    for choice in answer.output.choices if answer.output is not None else ():
        one = choice.metrics
        if one.steps > 1:
            found += [one.tpot * (one.tokens - 1) / (one.steps - 1)] * (one.steps - 1)
    return found
