"""The metrics of one application: no state is shared with others, or with the process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from fastslow.serve.observe.batch_histogram import BatchHistogram
from fastslow.serve.observe.metric_table import TABLE, Metric

MOST_VALUES = 200  # of one label; those that come later are "other"
OTHER = "other"
BATCHES = frozenset({"vllm:inter_token_latency_seconds"})


class MetricRegistry:
    """The metrics of the table, to be counted up by name.

    Args:
        model: (), the value of the label model_name; asked when something is counted.
    """

    def __init__(self, model: Callable[[], str]) -> None:
        self.registry = CollectorRegistry()
        self._model = model
        self._metrics = {metric.name: self._made(metric) for metric in TABLE}
        self._values: dict[tuple[str, str], set[str]] = {}
        self._totals: dict[tuple[str, ...], float] = {}

    def add(self, name: str, value: float = 1, **labels: str) -> None:
        """Count up."""
        if value:
            self._labelled(name, labels).inc(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """One value of a histogram."""
        self._labelled(name, labels).observe(max(0.0, value))

    def observe_all(self, name: str, values: Sequence[float]) -> None:
        """Many values of a histogram without labels of its own."""
        self._metrics[name].observe_all(self._model(), values)

    def put(self, name: str, value: float, **labels: str) -> None:
        """What a gauge shows."""
        self._labelled(name, labels).set(value)

    def drop(self, name: str) -> None:
        """A gauge shows nothing: its value is not known now. Its labels make room for others."""
        self._metrics[name].clear()
        for key in [key for key in self._values if key[0] == name]:
            del self._values[key]

    def add_up_to(self, name: str, total: float, **labels: str) -> None:
        """Count up by what another counter grew. Where that one began anew, it began at zero, and this one
        goes on: it never goes back."""
        key = name, *labels.values()
        before = self._totals.get(key, 0.0)
        self._totals[key] = total
        self.add(name, total - before if total >= before else total, **labels)

    def _labelled(self, name: str, labels: dict[str, str]) -> Any:
        bounded = {label: self._bounded(name, label, value) for label, value in labels.items()}
        return self._metrics[name].labels(model_name=self._model(), **bounded)

    def _bounded(self, name: str, label: str, value: str) -> str:
        known = self._values.setdefault((name, label), set())
        if value not in known:
            if len(known) >= MOST_VALUES:
                return OTHER
            known.add(value)
        return value

    def _made(self, metric: Metric) -> Any:
        if metric.name in BATCHES:
            batch = BatchHistogram(metric.name, metric.help, metric.buckets)
            self.registry.register(batch)
            return batch
        labels = ("model_name", *metric.labels)
        match metric.type:
            case "gauge":
                return Gauge(metric.name, metric.help, labels, registry=self.registry)
            case "counter":
                return Counter(metric.name, metric.help, labels, registry=self.registry)
        return Histogram(
            metric.name, metric.help, labels, registry=self.registry, buckets=metric.buckets
        )
