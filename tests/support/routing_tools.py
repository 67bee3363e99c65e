"""Requests and reports for tests of routing."""

from collections.abc import Sequence
from itertools import count
from typing import Any

from serve_tools import Clock

from fastslow.serve.engines.routing.chooser import ReplicaChooser
from fastslow.serve.engines.routing.report import ReplicaReport
from fastslow.serve.engines.routing.request import RoutedRequest
from fastslow.serve.engines.routing.settings import RoutingSettings

_numbers = count()


def request(prompt: str = "", **fields: Any) -> RoutedRequest:
    """A request of a fresh id."""
    values: dict[str, Any] = {"id": f"r{next(_numbers)}", "mode": "fast", "deep": False}
    values["prompt_tokens"] = len(prompt) // 4
    return RoutedRequest(prompt=prompt, **values | fields)


def quick(prompt: str = "", **fields: Any) -> RoutedRequest:
    """A request with a latency target."""
    return request(prompt, latency_ms=100.0, **fields)


def deep(prompt: str = "", **fields: Any) -> RoutedRequest:
    """A request that thinks."""
    return request(prompt, mode="deep", deep=True, **fields)


def report(at: float, **fields: Any) -> ReplicaReport:
    """An idle replica."""
    values: dict[str, Any] = {"running": {}, "waiting": {}, "deep": 0, "pages": 1000, "at": at}
    values |= {"step_seconds": {"fast": 0.05}, "queue_seconds": 0.0, "prompt_rate": 1000.0}
    return ReplicaReport(**values | fields)


def chooser_of(ids: Sequence[str], clock: Clock, **settings: Any) -> ReplicaChooser:
    """A chooser with a seed, and these replicas."""
    chooser = ReplicaChooser(RoutingSettings(seed=1, **settings), clock)
    chooser.set_replicas(ids)
    return chooser


def figures_of(n: int) -> dict[str, int]:
    """Of a replica's `stats`: all of them differ with the number."""
    return {"running": n, "waiting": n + 1, "pages": 100, "pages_used": n + 2, "tokens": 10 * n}
