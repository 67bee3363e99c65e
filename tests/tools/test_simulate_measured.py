"""What is measured of steps: an engine of known costs has exactly these; and the engines that run beside it."""

from __future__ import annotations

import itertools
import multiprocessing
import signal
import time
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastslow.tools.simulate import measured
from fastslow.tools.simulate.measured import (
    StepMeter,
    measured_costs,
    measured_slowdown,
    shared_slowdown,
)

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
        max_model_len=longest,
        max_running=running,
        stats=lambda: SimpleNamespace(pages=pages),
        _kv=SimpleNamespace(page_size=PAGE),
        model=SimpleNamespace(config=SimpleNamespace(vocab_size=10**6)),
    )


@pytest.mark.parametrize("longest", [2048, 300])
def test_what_a_token_of_context_costs(longest: int) -> None:
    meter = KnownMeter(engine(longest))
    assert meter.context("fast") == pytest.approx(CONTEXT)
    assert meter.asked[0] == 8  # one request alone drowns in noise
    assert meter.attention("fast", 512) == pytest.approx(ATTENTION)


def test_a_small_engine_is_not_filled() -> None:
    meter = KnownMeter(engine(pages=200))
    assert meter.context("fast") == pytest.approx(CONTEXT)
    assert max(meter.asked) * 512 <= 200 * PAGE / 2 + 512
    short = KnownMeter(engine(longest=20))
    assert short.context("fast") == 0.0 and short.attention("fast", 512) == 0.0


def test_both_are_in_the_costs_and_in_the_curves_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastslow.tools.simulate.measured.StepMeter", KnownMeter)
    costs = measured_costs(engine(), ("fast", "deep"), 512)
    assert costs.context_seconds == pytest.approx(CONTEXT)
    assert costs.attention_seconds == pytest.approx(ATTENTION)
    for rows in (64, 256, 512):
        assert costs.step({}, {"fast": rows}) == pytest.approx(rows * ROW)
    for rows in (1, 4, 16):
        assert costs.step({"deep": rows}, {}) == pytest.approx(STEP, rel=1e-4)


def test_one_row_is_measured() -> None:
    rows, decode, read = KnownMeter(engine(running=1)).mode("fast", 1)
    assert rows == (1, 2)
    assert decode == pytest.approx([STEP, STEP], rel=0.01)
    assert read == pytest.approx([STEP, 2 * ROW], rel=0.01)


class Beside:
    """As many engines run beside as it was asked for."""

    def __init__(self) -> None:
        self.running = 0

    def __len__(self) -> int:
        return 3

    def run_only(self, count: int) -> None:
        self.running = count


@pytest.mark.parametrize("drift", [1.0, 1.02, 0.98])
def test_the_slowdown_of_a_machine_whose_speed_changes(
    drift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, times = Beside(), itertools.count()

    def probe(meter: StepMeter, mode: str) -> float:
        """Beside one others a step takes longer, beside two noise makes it shorter than that."""
        return (1.0, 1.5, 1.4, 2.0)[beside.running] * drift ** next(times)

    monkeypatch.setattr(StepMeter, "probe", probe)
    found = measured_slowdown(engine(), "fast", beside)  # type: ignore[arg-type]
    assert found == pytest.approx((1.5, 1.5, 2.0), rel=0.005)
    assert found[0] <= found[1] <= found[2] and beside.running == 0


@pytest.mark.parametrize(
    ("slowdown", "share", "cores", "found"),
    [
        ((1.0, 1.5), 0.2, 2.0, (1.2, 1.8)),
        ((1.1, 1.4), 0.0, 2.0, (1.1, 1.4)),
        ((1.0, 1.2), 0.2, 4.0, (1.0, 1.2)),  # there are cores for all of it
        ((1.0, 1.2), 0.5, 4.0, (1.0, 1.2 * 4.5 / 4)),
        ((2.0,), 0.5, 1.0, (3.0,)),
        ((), 0.5, 2.0, ()),
    ],
)
def test_other_programs_take_their_part_of_the_cores(
    slowdown: tuple[float, ...],
    share: float,
    cores: float,
    found: tuple[float, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measured, "cores", lambda: cores)
    assert shared_slowdown(slowdown, share, 1) == pytest.approx(found)


# Other engines


def beside(*given: Any) -> None:
    """Loaded, and does at once what it is asked."""
    place, wanted, states = given[3], given[5], given[6]
    while True:
        states[place] = measured.RUNS if place < wanted.value else measured.RESTS
        time.sleep(0.001)


def deaf(*given: Any) -> None:
    given[6][given[3]] = measured.RESTS
    time.sleep(60)


def fake(monkeypatch: pytest.MonkeyPatch, target: Any) -> None:
    """Processes that do something else than to answer."""
    monkeypatch.setattr(measured, "_run_beside", target)
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: fork)


def test_one_that_ends_or_hangs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, beside)
    with measured.neighbours(2, "model", {}, "fast") as others:
        for count in (0, 2, 1):
            others.run_only(count)
        others.processes[0].kill()
        others.processes[0].join()
        with pytest.raises(RuntimeError, match="has ended"):
            others.run_only(1)
    assert not multiprocessing.active_children()
    fake(monkeypatch, deaf)
    hangs = pytest.raises(RuntimeError, match="has ended, or hangs")
    with measured.neighbours(1, "model", {}, "fast") as others, hangs:
        others.run_only(1, 0.05)
    fake(monkeypatch, lambda *given: None)
    ended = pytest.raises(RuntimeError, match="has ended")
    with ended, measured.neighbours(1, "no-such-model", {}, "fast"):
        pass
    assert not multiprocessing.active_children()


def test_they_rest_when_they_are_asked_to_and_end_with_their_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that is killed cannot end its children, and these would compute for ever."""
    asked: list[Any] = []
    alive = iter([True, True, True, False])
    wanted, states, handled = SimpleNamespace(value=1), [measured.LOADING], []

    def answer(llm: Any, mode: str, prompts: Any, tokens: int) -> None:
        asked.append((len(prompts[0]), states[0], wanted.value))
        wanted.value = 0  # from the second look on

    known = SimpleNamespace(model=engine().model, max_model_len=40)
    monkeypatch.setattr(measured, "LLM", lambda model, **options: nullcontext(known))
    monkeypatch.setattr(measured, "_answer", answer)
    monkeypatch.setattr(signal, "signal", lambda *given: handled.append(given))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    parent = SimpleNamespace(is_alive=lambda: next(alive))
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    run_beside: Any = measured._run_beside
    run_beside("model", {}, "fast", 0, 1, wanted, states)
    assert asked == [(40 - measured.STEPS, measured.LOADING, 1)] and states == [measured.RESTS]
    assert handled == [(signal.SIGINT, signal.SIG_IGN)]  # Ctrl-C is for the parent


def test_more_than_the_memory_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "free_memory", lambda device: 1 << 20)
    said = r"beside=64: .* need some [1-9].* GiB, and 0.0 GiB are free"
    with pytest.raises(ValueError, match=said), measured.neighbours(64, "model", {}, "fast"):
        pass
