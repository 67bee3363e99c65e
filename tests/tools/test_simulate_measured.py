"""Measured costs of steps: an engine of known costs has exactly these; and the engines that run beside it."""

import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from processes_served import wait_for

from fastslow.tools.simulate import measured
from fastslow.tools.simulate.measured import StepMeter, measured_costs

STEP, ROW, CONTEXT, ATTENTION = 0.02, 0.004, 2e-6, 1.5e-6  # seconds
PAGE = 16


class KnownMeter(StepMeter):
    """Times as the costs above have them; whole pages of a prompt are cached."""

    def __init__(self, llm: Any) -> None:
        super().__init__(llm)
        self.cached: list[list[int]] = []
        self.asked: list[int] = []  # requests

    def _seconds(self, mode: str, prompts: list[list[int]], tokens: int) -> float:
        self.asked.append(len(prompts))
        seconds = 0.0
        for prompt in prompts:
            known = max((self._alike(prompt, one) for one in self.cached), default=0)
            known = min(known, len(prompt) - 1) // PAGE * PAGE
            rows = len(prompt) - known
            seconds += rows * ROW + ATTENTION * rows * (known + rows / 2)
            self.cached.append(prompt)
        for made in range(1, tokens):
            seconds += STEP + CONTEXT * sum(len(prompt) + made for prompt in prompts)
        return seconds

    def _alike(self, one: list[int], other: list[int]) -> int:
        pairs = zip(one, other, strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def engine(longest: int = 2048, pages: int = 4096, running: int = 16) -> Any:
    return SimpleNamespace(
        max_model_len=longest, max_running=running, stats=lambda: SimpleNamespace(pages=pages),
        _kv=SimpleNamespace(page_size=PAGE), model=SimpleNamespace(config=SimpleNamespace(vocab_size=10**6)),
    )  # fmt: skip


@pytest.mark.parametrize("longest", [2048, 300])
def test_what_a_token_of_context_costs(longest: int) -> None:
    meter = KnownMeter(engine(longest))
    assert meter.context("fast") == pytest.approx(CONTEXT)
    assert meter.asked[0] == 8  # one request alone drowns in noise
    assert meter.attention("fast", 512) == pytest.approx(ATTENTION)


def test_a_small_engine_is_not_filled() -> None:
    meter = KnownMeter(engine(pages=200))
    assert meter.context("fast") == pytest.approx(CONTEXT) and max(meter.asked) * 512 <= 200 * PAGE / 2 + 512
    short = KnownMeter(engine(longest=20))
    assert short.context("fast") == 0.0 and short.attention("fast", 512) == 0.0


def test_both_are_in_the_costs_and_in_the_curves_no_more_also_of_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastslow.tools.simulate.measured.StepMeter", KnownMeter)
    costs = measured_costs(engine(), ("fast", "deep"), 512)
    assert costs.context_seconds == pytest.approx(CONTEXT)
    assert costs.attention_seconds == pytest.approx(ATTENTION)
    for rows in (64, 256, 512):
        assert costs.step({}, {"fast": rows}) == pytest.approx(rows * ROW)
    for rows in (1, 4, 16):
        assert costs.step({"deep": rows}, {}) == pytest.approx(STEP, rel=1e-4)
    counts, decode, read = KnownMeter(engine(running=1)).mode("fast", 1)
    assert counts == (1, 2) and decode == pytest.approx([STEP, 2 * STEP], rel=0.01)
    assert read[-1] == pytest.approx(2 * ROW, rel=0.01)


@pytest.mark.parametrize("drift", [1.0, 1.02, 0.98])
def test_the_slowdown_of_a_machine_whose_speed_changes(drift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    running, times = 0, itertools.count()

    def run_only(pids: Sequence[int], count: int) -> None:
        nonlocal running
        running = count

    def probe(meter: StepMeter, mode: str) -> float:
        """Beside one others a step takes longer, beside two noise makes it shorter than that."""
        return (1.0, 1.5, 1.4, 2.0)[running] * drift ** next(times)

    monkeypatch.setattr(measured, "run_only", run_only)
    monkeypatch.setattr(StepMeter, "probe", probe)
    found = measured.measured_slowdown(engine(), "fast", [1, 2, 3])
    assert found == pytest.approx((1.5, 1.5, 2.0), rel=0.005) and found[0] <= found[1] <= found[2]


class Endless:
    """An engine that answers at once."""

    model = SimpleNamespace(config=SimpleNamespace(vocab_size=9))
    max_model_len = 40

    def __init__(self, model: str, **options: Any) -> None:
        if model == "missing":
            raise SystemExit("it does not load")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def generate(self, *asked: Any, **options: Any) -> None:
        time.sleep(0.001)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_other_engines_run_and_stand_still_and_one_that_ends_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "LLM", Endless)
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # which it sets for good
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: fork)
    ended = pytest.raises(RuntimeError, match="has ended, or hangs")
    with ended, measured.other_engines(2, "model", {}, "fast") as pids:
        for count in (0, 2, 1):
            measured.run_only(pids, count)
            stand = [n >= count for n in range(2)]
            wait_for(lambda: [state_of(pid) == "T" for pid in pids] == stand)  # noqa: B023
        os.kill(pids[0], signal.SIGKILL)
        wait_for(lambda: pids[0] not in [one.pid for one in multiprocessing.active_children()])
    assert not multiprocessing.active_children()
    with pytest.raises(RuntimeError, match="has ended, or hangs"), measured.other_engines(1, "missing", {}, "fast"):
        pass
    assert not multiprocessing.active_children()
