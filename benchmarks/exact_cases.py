"""What exact.py runs: which prompts, in which mode, who drafts, and what runs beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

BATCH = 8


@dataclass(frozen=True)
class Job:
    """Which prompt is answered in which mode, and who drafts."""

    prompt: int
    mode: str
    drafter: str


@dataclass(frozen=True)
class Case:
    """A way to run jobs. `warm`: their prompts were read before, in their own mode and another;
    `few`: the pages do not hold the batch. threads: None = as the run says."""

    name: str
    jobs: list[Job]
    batch: int = BATCH
    prompt_rows: int = 512
    warm: bool = False
    few: bool = False
    threads: int | None = None


def cases(modes: Sequence[str], drafters: Sequence[str], count: int, light: bool) -> list[Case]:
    """The plain reference first, then all that must equal it."""
    shifts = range(1 if light else len(modes))

    def mode(prompt: int, shift: int) -> str:
        return modes[(prompt + shift) % len(modes)]

    plain = [Job(i, mode(i, shift), "off") for shift in shifts for i in range(count)]
    found = [Case("plain, alone", plain, batch=1)]
    for d, name in enumerate(drafters):
        share = [i for i in range(count) if not light or i // len(modes) % len(drafters) == d]
        alone = [Job(i, mode(i, shift), name) for shift in shifts for i in share]
        found.append(Case(f"{name}, alone", alone, batch=1))
    mixed = ("off", *drafters)
    for shift in shifts:
        label = f", shift {shift}" if len(shifts) > 1 else ""
        jobs = [
            Job(i, mode(i, shift), mixed[(i // len(modes) + shift) % len(mixed)])
            for i in range(count)
        ]
        found += [
            Case(f"mixed batch{label}", jobs),
            Case(f"mixed, chunks of 23{label}", jobs, prompt_rows=23),
            Case(f"mixed, prefix hit{label}", jobs, warm=True),
            Case(f"mixed, preempted{label}", jobs, few=True),
        ]
    return [case for case in found if case.jobs]


def sweep(
    modes: Sequence[str], drafters: Sequence[str], count: int, share: int, threads: Sequence[int]
) -> list[Case]:
    """Every drafter at batch 1 and 8, with each number of threads, prompts whole and in chunks.

    Each combination takes one prompt in `share`, another one each; a prompt has one mode.
    """
    plain = [Job(i, modes[i % len(modes)], "off") for i in range(count)]
    found = [Case("plain, alone", plain, batch=1, threads=threads[0])]
    combined = product(drafters, (1, BATCH), threads, (512, 23))
    for n, (name, batch, count_threads, rows) in enumerate(combined):
        jobs = [Job(i, modes[i % len(modes)], name) for i in range(n % share, count, share)]
        chunks = "whole" if rows == 512 else f"chunks of {rows}"
        label = f"{name}, batch {batch}, {count_threads} threads, {chunks}"
        found.append(Case(label, jobs, batch, rows, threads=count_threads))
    return [case for case in found if case.jobs]
