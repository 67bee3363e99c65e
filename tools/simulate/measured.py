"""Step costs of this machine, by answers of an engine: what a step takes with all that belongs to it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from statistics import mean, median

import numpy as np

from fastslow.engine.host.progress import Report, silent
from fastslow.engine.params import SamplingParams
from fastslow.llm import LLM
from fastslow.tools.simulate.costs import ModeSteps, ReplicaCosts, curve_of

BATCHES = (1, 2, 4, 8, 16, 32, 64)  # requests that decode together
PROMPTS = (16, 64, 128, 256, 512, 1024)  # tokens of a prompt that is read
STEPS = 16  # over which a decoding step is averaged
SHORT, LONG = 16, 512  # tokens of context
CROWD = 8  # requests whose long contexts are read in each step: with one it drowns in noise
READ_AFTER = 32  # tokens of a prompt that is read after a long context
LEAST_STEP = 1e-6  # seconds
TIMES = 3  # the median counts


def measured_costs(
    llm: LLM, modes: Sequence[str], prompt_rows: int, report: Report = silent
) -> ReplicaCosts:
    """Measure steps of a loaded model here, without drafts, and its pages. prompt_rows: those that it was made with."""
    meter = StepMeter(llm)
    curves, contexts, attention = {}, [], []
    for place, mode in enumerate(modes):
        report(place / len(modes), f"measuring steps of {mode}")
        curves[mode] = meter.mode(mode, prompt_rows)
        contexts.append(meter.context(mode))
        attention.append(meter.attention(mode, prompt_rows))
    context, row = max(0.0, mean(contexts)), max(0.0, mean(attention))
    before = SHORT + 2 + STEPS / 2  # tokens before each request, on average over the timed steps
    return ReplicaCosts(
        modes={
            mode: ModeSteps(
                rows=rows,  # the simulator adds what the texts of requests cost
                seconds=_ascending(s - context * n * before for n, s in zip(rows, decode)),
                prompt_seconds=_ascending(s - row * n * n / 2 for n, s in zip(rows, read)),
            )
            for mode, (rows, decode, read) in curves.items()
        },
        pages=llm.stats().pages,
        page_tokens=llm._kv.page_size,
        max_running=min(llm.max_running, prompt_rows),
        prompt_rows=prompt_rows,
        context_seconds=context,
        attention_seconds=row,
        source="measured on this machine",
    )


class StepMeter:
    """Times answers of random tokens."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._random = np.random.default_rng(0)

    def mode(self, mode: str, prompt_rows: int) -> tuple[tuple[int, ...], list[float], list[float]]:
        """Numbers of rows, and seconds of steps that decode as many and that read as many."""
        batches = [n for n in BATCHES if n <= self._llm.max_running]
        most = min(prompt_rows, self._llm.max_model_len - 2)
        prompts = [n for n in PROMPTS if n <= most] or [max(2, most)]
        self.decode(mode, 1, SHORT)  # what is made on first use
        decode = [self.decode(mode, n, SHORT) for n in batches]
        read = [median(self._read(mode, n) for _ in range(TIMES)) for n in prompts]
        rows = tuple(sorted({*batches, *prompts}))
        decoded, was_read = curve_of(batches, decode), curve_of([1, *prompts], [decode[0], *read])
        return rows, [decoded[n] for n in rows], [was_read[n] for n in rows]

    def decode(self, mode: str, requests: int, context: int) -> float:
        """Seconds of a step in which some requests decode: a long answer less a short one."""
        prompts = [self._tokens(context) for _ in range(requests)]
        self._seconds(mode, prompts, 1)  # the prompts are in the prefix cache from here on
        pairs = [
            (self._seconds(mode, prompts, 2), self._seconds(mode, prompts, 2 + STEPS))
            for _ in range(TIMES)
        ]
        return max(LEAST_STEP, median((long - short) / STEPS for short, long in pairs))

    def context(self, mode: str) -> float:
        """Seconds that a token of context adds to a decoding step."""
        far = min(LONG, self._llm.max_model_len - STEPS - 2)
        if far <= SHORT:
            return 0.0
        fit = self._llm.stats().pages * self._llm._kv.page_size // (2 * far)
        requests = max(1, min(CROWD, self._llm.max_running, fit))
        more = self.decode(mode, requests, far) - self.decode(mode, requests, SHORT)
        return more / (requests * (far - SHORT))

    def attention(self, mode: str, prompt_rows: int) -> float:
        """Seconds that a token of context adds to each row of a prompt that is read after it."""
        rows = min(READ_AFTER, prompt_rows)
        far = min(LONG, self._llm.max_model_len - rows - 2)
        far -= far % self._llm._kv.page_size  # the cache holds whole pages
        if far <= SHORT:
            return 0.0
        known = self._tokens(far)
        self._seconds(mode, [known], 1)  # it is in the prefix cache from here on
        alone = [self._read(mode, rows) for _ in range(TIMES)]
        after = [self._seconds(mode, [known + self._tokens(rows)], 1) for _ in range(TIMES)]
        return (median(after) - median(alone)) / (rows * far)

    def _read(self, mode: str, tokens: int) -> float:
        return self._seconds(mode, [self._tokens(tokens)], 1)

    def _tokens(self, count: int) -> list[int]:
        """Random ones: nothing of them is in a cache."""
        size = self._llm.model.config.vocab_size
        found: list[int] = self._random.integers(0, size, count).tolist()
        return found

    def _seconds(self, mode: str, prompts: list[list[int]], tokens: int) -> float:
        started = time.perf_counter()
        _answer(self._llm, mode, prompts, tokens)
        return time.perf_counter() - started


def _answer(llm: LLM, mode: str, prompts: list[list[int]], tokens: int) -> None:
    sampling = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
    llm.generate(prompts, sampling, mode=mode, speculation="off", allow_special=True)


def _ascending(seconds: Iterable[float]) -> tuple[float, ...]:
    """More rows never take less: such a measurement was disturbed."""
    return tuple(itertools.accumulate((max(LEAST_STEP, one) for one in seconds), max))
