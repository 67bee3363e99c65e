"""Seconds that a step of a model takes by its rows: measured on this machine once, and kept in a file."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from loguru import logger

from fastslow.engine.backends.cpu.compiled.kernel_cache import kernels_identity
from fastslow.engine.host.files import cache_folder, read_object
from fastslow.engine.host.machine import Watch
from fastslow.engine.host.unfinished import unfinished
from fastslow.engine.kv.state.layout import UNFOLDED
from fastslow.engine.model.base import Model, kv_cache_for
from fastslow.engine.rows import Rows, RunningRows, Segment

ROWS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64, 96, 128)
CONTEXT = 64  # tokens before the rows
WARM = 3  # steps that do not count: they find cold caches and sleeping threads
ROUNDS = 5  # the fastest counts: what else runs on the machine comes and goes
PATIENCE = 1.5  # seconds; larger steps are then left out
FIRST_PATIENCE = 0.2  # seconds, where somebody waits for an answer
DRAFTED = UNFOLDED * 2 // 3  # most rows of a draft; with those accepted before they fit
LEAST = 3  # row counts that are measured, however slow they are: one alone says nothing of what a row costs
WORTH_KEEPING = 0.2  # seconds
BUSY = 0.1  # share of the machine that others take, above which what was measured is not kept


class StepTimes(NamedTuple):
    """rows: counts, ascending from 1. seconds: of a greedy step of each. spent: seconds of measuring so far."""

    rows: tuple[int, ...]
    seconds: tuple[float, ...]
    spent: float = PATIENCE  # of files that were written before it was kept


def step_seconds(
    model: Model, groups: int | None, identity: str, patience: float = PATIENCE
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Row counts, ascending from 1, and the seconds of a greedy step of each, with a number of routed groups
    (None = all), over random tokens.

    patience: seconds to spend now; calls add up to `PATIENCE`, till when the largest step is estimated. The result
    is kept in the cache folder if measuring took long and the machine was not busy with other things; a file that
    does not fit is replaced. `identity` tells models apart that run at different speeds: path, dtype, quantization.
    """
    path = _path(model, groups, identity)
    found = _read(path) or StepTimes((), (), 0.0)
    if found.spent < PATIENCE:
        started, watch = time.perf_counter(), Watch()
        found = _measure(model, groups, found, patience)
        taken, others = time.perf_counter() - started, watch.others()
        if taken > WORTH_KEEPING:
            said = "measured what steps of 1 to {} rows take, in {:.1f} s"
            logger.info(said, found.rows[-1], taken)
            if others is None or others <= BUSY:
                _keep(path, found)
            else:
                said = "others took {:.0%} of the machine: measured again at the next start"
                logger.info(said, others)
    rows, seconds = found.rows, found.seconds
    most = min(ROWS[-1], model.config.context - CONTEXT)
    if found.spent < PATIENCE and 1 < rows[-1] < most:
        row = max(0.0, seconds[-1] - seconds[0]) / (rows[-1] - 1)
        return (*rows, most), (*seconds, seconds[-1] + row * (most - rows[-1]))
    return rows, seconds


def _measure(model: Model, groups: int | None, before: StepTimes, patience: float) -> StepTimes:
    known = dict(zip(before.rows, before.seconds))
    fits = [n for n in ROWS if CONTEXT + n <= model.config.context] or [1]
    context = min(CONTEXT, model.config.context - 1)
    pages = -(-(context + fits[-1]) // 16)
    cache = kv_cache_for(
        model, pages * model.storage.dp_ranks, places=1, snapshots=0
    )  # all rows on the first rank
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, context + fits[-1])
    slots = np.arange(context + fits[-1])

    def run(first: int, count: int) -> float:
        segment = Segment(
            tokens=tokens[first : first + count].tolist(),
            positions=range(first, first + count),
            parents=range(-1, count - 1),
            slots=slots[first : first + count],
            context=slots[:first],
            groups=groups,
            outputs=range(count),
            only_best=True,
            running=drafted(count) if first else RunningRows.chunk(count),
        )
        started = time.perf_counter()
        model.forward(Rows.of([segment]), cache.storage)
        return time.perf_counter() - started

    run(0, context)
    for _ in range(WARM):
        if run(context, 1) > patience / 10:
            break
    left = patience = min(patience, PATIENCE - before.spent)
    missing = [n for n in fits if n not in known]
    for n in [*missing, *fits * (ROUNDS - bool(missing))]:
        if left > 0 or len(known) < LEAST:
            taken = run(context, n)
            known[n], left = min(taken, known.get(n, taken)), left - taken
    spent = PATIENCE if left > 0 else before.spent + patience  # all rounds were run
    rows, seconds = zip(*sorted(known.items()))
    return StepTimes(rows, seconds, spent)


def drafted(count: int) -> RunningRows:
    """Return the work on running states of a step of a last token and its draft: half as many rows were accepted
    before and are folded in, and none of these. What is more than DRAFTED rows is folded in, as text that is read."""
    read = max(0, count - DRAFTED)
    before = np.arange((count - read + 1) // 2)
    at = np.arange(len(before) - read, len(before) - read + count)
    return RunningRows(0, before, len(before), read, at % UNFOLDED)


def _path(model: Model, groups: int | None, identity: str) -> Path:
    facts = (
        identity,
        type(model).__name__,
        str(model.dtype),
        str(model.device),
        torch.get_num_threads(),
        kernels_identity(),
        groups,
        ROWS,
    )
    name = hashlib.sha256(repr(facts).encode()).hexdigest()[:20]
    return cache_folder() / "step_times" / f"{name}.json"


def _read(path: Path) -> StepTimes | None:
    try:
        kept = read_object(path)
        rows, seconds = tuple(map(int, kept["rows"])), tuple(map(float, kept["seconds"]))
        found = StepTimes(rows, seconds, float(kept.get("spent", PATIENCE)))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    numbers = all(0 < x < math.inf for x in (*seconds, found.spent))
    sound = len(rows) == len(seconds) > 0 and rows[0] == 1 and numbers
    return found if sound and all(a < b for a, b in itertools.pairwise(rows)) else None


def _keep(path: Path, found: StepTimes) -> None:
    try:
        with unfinished(path) as made:
            made.write_text(json.dumps(found._asdict()), "utf-8")
            os.replace(made, path)
    except OSError as error:
        logger.warning("step times cannot be kept, so each start measures anew: {}", error)
