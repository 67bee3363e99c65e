"""Requests at random moments on replicas of this machine, beside what `fastslow simulate` makes of them.

The machine's speed changes within minutes. So steps are measured before and after each recording, and the mean
counts; and all recordings of a number of replicas are compared together. Where engines need all cores they share what
the server, Ray and the clients leave of them, which is measured during the recording.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from figures import console, numbers, show
from serve_load.arrivals import one_by_one, recorded, traced
from serve_load.front import Front

from fastslow.tools.simulate.cluster import SimulatedCluster
from fastslow.tools.simulate.comparison import compare
from fastslow.tools.simulate.costs import ModeSteps, ReplicaCosts, read_costs
from fastslow.tools.simulate.figures import AnswerTimes, by_mode, measured_times, simulated_times
from fastslow.tools.simulate.settings import ClusterSettings
from fastslow.tools.simulate.trace import TracedRequest

ALONE, COLD = 14, 4  # requests one by one, and those of them that fill caches
RUNNING = "16"  # most requests in a step that are measured: there are never so many here
LIMIT = 0.2  # that a 95th percentile may be off


@dataclass(frozen=True, slots=True)
class Recording:
    """What was seen on some replicas, and what steps took at that time."""

    replicas: int
    alone: list[TracedRequest]
    trace: list[TracedRequest]
    costs: ReplicaCosts

    def times(self, turn: int) -> tuple[list[AnswerTimes], list[AnswerTimes]]:
        """Measured ones, and simulated ones."""
        steps = self.costs
        first = median(one.first for one in measured_times(self.alone))
        simulated = self._simulated(self.alone, steps)
        way = max(0.0, first - median(one.first for one in simulated[COLD:]))
        found = self._simulated(self.trace, replace(steps, first_seconds=way))
        return _named(turn, measured_times(self.trace)), _named(turn, found)

    def _simulated(self, trace: Sequence[TracedRequest], costs: ReplicaCosts) -> list[AnswerTimes]:
        settings = ClusterSettings(self.replicas, machine_replicas=self.replicas)
        return simulated_times(SimulatedCluster(trace, costs, settings).run())


def run(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    counts = numbers(args.counts)
    recordings, lost = [], 0
    with TemporaryDirectory() as folder:
        slowdown = _costs(args.model, Path(folder), max(counts) - 1).slowdown
        before = _costs(args.model, Path(folder))
        for turn in range(args.repeat):
            for count in counts[:: -1 if turn % 2 else 1]:
                front = Front(args.model, args.more, count)
                try:
                    seen = asyncio.run(one_by_one(front.address, ALONE))
                    begin, taken = time.monotonic(), front.other_cpu_seconds()
                    trace, missing = recorded(front.address, args, args.seed + turn)
                    taken = (front.other_cpu_seconds() - taken) / (time.monotonic() - begin)
                finally:
                    front.end()
                after = _costs(args.model, Path(folder))
                alone = [
                    one
                    for number, request in enumerate(seen)
                    if (one := traced(number, request, number >= COLD))
                ]
                steps = replace(_between(before, after), slowdown=_shared(slowdown, taken))
                recordings.append(Recording(count, alone, trace, steps))
                before, lost = after, lost + missing
                console().print(
                    f"round {turn + 1}: {count} replicas, {len(trace)} answers; the server, Ray and the clients took "
                    f"{taken:.2f} cores"
                )
    return _compared(recordings, slowdown, lost, args)


def _compared(
    recordings: Sequence[Recording],
    slowdown: Sequence[float],
    lost: int,
    args: argparse.Namespace,
) -> tuple[dict[str, Any], list[str]]:
    rows, found, wrong = [], {}, [f"{lost} requests have no answer"] if lost else []
    for count in numbers(args.counts):
        measured: list[AnswerTimes] = []
        simulated: list[AnswerTimes] = []
        each = []
        for turn, one in enumerate(one for one in recordings if one.replicas == count):
            seen, made = one.times(turn)
            measured, simulated = measured + seen, simulated + made
            known = {answer.request.id for answer in seen}
            made_known = [answer for answer in made if answer.request.id in known]
            pair = by_mode(seen)["all"], by_mode(made_known)["all"]
            each.append(" ".join(f"{1000 * figure.first[1]:.0f}" for figure in pair))
        figures = compare(measured, simulated)
        for figure in figures:
            values = f"{1000 * figure.measured:.1f}", f"{1000 * figure.simulated:.1f}"
            rows.append(
                (str(count), figure.mode, figure.what, f"p{figure.percentile}", *values)
                + (f"{figure.off:+.0%}",)
            )
            if figure.mode == "all" and figure.percentile == 95 and abs(figure.off) > LIMIT:
                wrong.append(f"{count} replicas, {figure.what}: p95 is off by {figure.off:+.0%}")
        found[count] = {
            "compared": [[f.mode, f.what, f.percentile, f.measured, f.simulated] for f in figures],
            "first_p95_ms_of_each_round": each,
        }
        console().print(
            f"{count} replicas: first token p95 by round, measured and simulated: {each}"
        )
    show(
        ("replicas", "mode", "what", "", "measured ms", "simulated ms", "off"),
        rows,
        f"{args.rate:g} requests a second, {args.repeat} rounds of {args.seconds:g} s. A step beside others takes "
        f"{', '.join(f'{value:.2f}' for value in slowdown)} times what it takes alone.",
    )
    return {"slowdown": list(slowdown), "counts": found}, wrong


def _shared(slowdown: Sequence[float], taken: float) -> tuple[float, ...]:
    """What steps take beside 1, 2, ... others, where other programs take so many cores meanwhile."""
    cores = os.cpu_count() or 1
    left = cores / max(1.0, cores - taken)
    return tuple(
        value * (left if others + 1 >= cores else 1.0) for others, value in enumerate(slowdown, 1)
    )


def _costs(model: str, folder: Path, beside: int = 0) -> ReplicaCosts:
    """What steps take now, on one thread as a replica has."""
    out = folder / "costs.json"
    words = ["simulate", "measure", "--model", model, "-o", str(out), "--max-running", RUNNING]
    subprocess.run(
        [sys.executable, "-m", "fastslow", *words, "--beside", str(beside)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return read_costs(out)


def _between(one: ReplicaCosts, other: ReplicaCosts) -> ReplicaCosts:
    """The mean of both."""
    modes = {name: _mean(steps, other.modes[name]) for name, steps in one.modes.items()}
    context = (one.context_seconds + other.context_seconds) / 2
    return replace(one, modes=modes, context_seconds=context)


def _mean(one: ModeSteps, other: ModeSteps) -> ModeSteps:
    def curve(name: str) -> tuple[float, ...]:
        pairs = zip(getattr(one, name), getattr(other, name), strict=True)
        return tuple((a + b) / 2 for a, b in pairs)

    return replace(one, seconds=curve("seconds"), prompt_seconds=curve("prompt_seconds"))


def _named(turn: int, times: Sequence[AnswerTimes]) -> list[AnswerTimes]:
    """With ids of their own among all rounds."""
    return [
        replace(one, request=replace(one.request, id=f"{turn}/{one.request.id}")) for one in times
    ]
