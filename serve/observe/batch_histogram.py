"""A histogram of many values at once: those between an answer's tokens, in one go at its end."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class BatchHistogram(Collector):
    """Counts by model. What prometheus-client has takes a lock and a search for each value, which at the end of
    a long answer would hold up all others for milliseconds.

    Args:
        bounds: upper ones of the buckets, ascending, without infinity.
    """

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:
        self._name, self._help, self._bounds = name, help, list(bounds)
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def observe_all(self, model: str, values: Sequence[float]) -> None:
        """Take values."""
        if not values:
            return
        counts = self._counts.setdefault(model, [0] * (len(self._bounds) + 1))
        for value in values:
            counts[bisect_left(self._bounds, value)] += 1
        self._sums[model] = self._sums.get(model, 0.0) + sum(values)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """What Prometheus reads: each bucket counts those below it, too."""
        family = HistogramMetricFamily(self._name, self._help, labels=("model_name",))
        for model, counts in self._counts.items():
            total, buckets = 0, []
            for bound, count in zip([*self._bounds, float("inf")], counts):
                total += count
                buckets.append((floatToGoString(bound), float(total)))  # type: ignore[no-untyped-call]
            family.add_metric([model], buckets, self._sums[model])
        yield family
