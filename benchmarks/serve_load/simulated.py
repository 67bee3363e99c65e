"""Requests at random moments on replicas of this machine, beside what `fastslow simulate` makes of them.

The machine's speed changes within minutes. So steps are measured before and after each recording, and the mean
counts; and all recordings of a number of replicas are compared together. The server, Ray and the clients need the same
cores, and so do all threads of a replica but its engine's: what they compute for each second of the engine's thread is
measured, and counts where engines need all cores.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from figures import console, numbers, show
from serve_load.arrivals import as_trace, one_by_one, sent
from serve_load.front import CpuSeconds, Front

from fastslow.engine.host.machine import cores
from fastslow.tools.simulate.cluster import SimulatedCluster
from fastslow.tools.simulate.comparison import compare
from fastslow.tools.simulate.costs import ModeSteps, ReplicaCosts, read_costs, write_costs
from fastslow.tools.simulate.figures import AnswerTimes, by_mode, measured_times, simulated_times
from fastslow.tools.simulate.measured import shared_slowdown
from fastslow.tools.simulate.settings import ClusterSettings
from fastslow.tools.simulate.trace import TracedRequest, write_trace

ALONE, COLD = 14, 4  # requests one by one, and those of them that do not count
RUNNING = "16"  # most requests in a step that are measured: there are never so many here
LIMIT = 0.2  # that a 95th percentile may be off


@dataclass(frozen=True, slots=True)
class Recording:
    """What was seen on some replicas, and what steps took at that time."""

    replicas: int
    trace: list[TracedRequest]
    costs: ReplicaCosts

    def times(self, turn: int) -> tuple[list[AnswerTimes], list[AnswerTimes]]:
        """Measured ones, and simulated ones."""
        settings = ClusterSettings(self.replicas, machine_replicas=self.replicas)
        found = simulated_times(SimulatedCluster(self.trace, self.costs, settings).run())
        return _named(turn, measured_times(self.trace)), _named(turn, found)

    def keep(self, folder: Path, turn: int) -> None:
        """Write what was recorded, as files that `fastslow simulate run` reads."""
        name = f"{self.replicas}-replicas-{turn + 1}"
        write_trace(folder / f"{name}.trace.jsonl", self.trace)
        write_costs(folder / f"{name}.costs.json", self.costs)


def run(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    counts = numbers(args.counts)
    if args.keep is not None:
        args.keep.mkdir(parents=True, exist_ok=True)  # better known now than after minutes
    recordings, lost = [], 0
    with TemporaryDirectory() as folder:
        before = _costs(args.model, Path(folder), max(counts) - 1)
        slowdown = before.slowdown
        for turn in range(args.repeat):
            for count in counts[:: -1 if turn % 2 else 1]:
                front = Front(args.model, args.more, count)
                try:
                    alone = asyncio.run(one_by_one(front.address, ALONE))
                    begun = front.cpu_seconds()
                    seen = sent(front.address, args, args.seed + turn)
                    share = other_share(begun, front.cpu_seconds())
                    trace, missing = as_trace(front.address, args, seen)
                finally:
                    front.end()
                after = _costs(args.model, Path(folder))
                way = max(0.0, median(reply.first - reply.waited for *_, reply in alone[COLD:]))
                steps = replace(
                    _between(before, after),
                    first_seconds=way,
                    slowdown=shared_slowdown(slowdown, share, cores()),
                )
                recordings.append(Recording(count, trace, steps))
                before, lost = after, lost + missing
                if args.keep is not None:
                    recordings[-1].keep(args.keep, turn)
                console().print(
                    f"round {turn + 1}: {count} replicas, {len(trace)} answers; a way of {1000 * way:.0f} ms; all but "
                    f"the engines computed {share:.2f} s for each second of theirs"
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


def other_share(begun: CpuSeconds, ended: CpuSeconds) -> float:
    """Seconds that all but the engines computed for each second of theirs, between two moments.

    The thread of a replica that computed most is its engine's. A process that ended meanwhile does not count.
    """
    engines = others = 0.0
    for pid, threads in ended.replicas.items():
        known = begun.replicas.get(pid, {})
        spent = [seconds - known.get(thread, 0.0) for thread, seconds in threads.items()]
        engines += max(spent, default=0.0)
        others += sum(spent) - max(spent, default=0.0)
    for pid, seconds in ended.others.items():
        others += seconds - begun.others.get(pid, 0.0)
    if not engines:
        raise RuntimeError("no replica computed while requests were sent")
    return others / engines


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
    attention = (one.attention_seconds + other.attention_seconds) / 2
    return replace(one, modes=modes, context_seconds=context, attention_seconds=attention)


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
