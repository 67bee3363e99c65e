"""When a request runs: what decides that, and what is known of it afterwards."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Scheduling:
    """What decides when a request runs, and how much of it."""

    priority: int = 0  # smaller goes first; the scheduler lowers it where a request has waited long
    latency_target: float | None = None  # seconds to the first token, and for each later one
    may_cut_draft: bool = True  # where a target would be missed
    may_cut_groups: bool = False
    arrival: int = -1  # its place in the order in which requests came
    skipped_steps: int = 0  # steps since it was last served


@dataclass(slots=True)
class Timing:
    """When it happened, in seconds of `time.monotonic`; 0.0 = not yet."""

    called: float = 0.0
    began: float = 0.0  # when the request first ran
    first_token: float = 0.0
    last_token: float = 0.0
    deadline: float | None = None  # it ends then, whether it runs or waits
