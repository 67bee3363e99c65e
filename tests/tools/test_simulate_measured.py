"""What is measured of steps: an engine of known costs has exactly these; and the engines that run beside it."""

from __future__ import annotations

import itertools
import multiprocessing
import signal
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import pytest
import torch

from fastslow.tools.simulate import neighbours
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
    found = measured_slowdown(engine(), "fast", beside, 3)  # type: ignore[arg-type]
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
    slowdown: tuple[float, ...], share: float, cores: float, found: tuple[float, ...]
) -> None:
    assert shared_slowdown(slowdown, share, cores) == pytest.approx(found)


# Other engines

answer: Any = neighbours._answer


class Pipe:
    """To its parent: what that says at each look, None = nothing; then it is gone."""

    def __init__(self, *heard: bool | None) -> None:
        self.heard = list(heard)
        self.said = 0

    def poll(self, seconds: float | None) -> bool:
        assert seconds in (0.0, None)
        if self.heard and self.heard[0] is None:
            self.heard.pop(0)
            assert seconds == 0.0, "nobody would wake it"
            return False
        return True

    def recv(self) -> bool | None:
        if not self.heard:
            raise EOFError
        return self.heard.pop(0)

    def send(self, value: bool) -> None:
        self.said += value


class Engine:
    """Counts what it is asked."""

    asked: ClassVar[list[list[list[int]]]] = []
    model = SimpleNamespace(config=SimpleNamespace(vocab_size=50))

    def __init__(self, model: str, max_model_len: int) -> None:
        self.max_model_len = max_model_len

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def generate(self, prompts: list[list[int]], *args: Any, **more: Any) -> None:
        self.asked.append(prompts)


def test_they_end_with_their_parent_and_ctrl_c_is_not_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that is killed cannot end its children, and these would compute for ever."""
    handled: list[tuple[int, Any]] = []
    threads: list[int] = []
    monkeypatch.setattr(Engine, "asked", [])
    monkeypatch.setattr(neighbours, "LLM", Engine)
    monkeypatch.setattr(signal, "signal", lambda *given: handled.append(given))
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    pipe = Pipe(True, None, None)
    answer("model", {"max_model_len": 40}, "fast", 3, pipe)
    assert threads == [3] and len(Engine.asked) == 4 and pipe.said == 2
    assert {len(prompt) for prompts in Engine.asked for prompt in prompts} == {
        40 - neighbours.ANSWER
    }
    assert handled == [(signal.SIGINT, signal.SIG_IGN)]


def test_they_rest_when_they_are_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "asked", [])
    monkeypatch.setattr(neighbours, "LLM", Engine)
    monkeypatch.setattr(signal, "signal", lambda *given: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    pipe = Pipe(False, True, None, False)
    answer("model", {"max_model_len": 40}, "fast", 1, pipe)
    assert len(Engine.asked) == 3 and pipe.said == 4  # once loaded, and once for each word


def fake(monkeypatch: pytest.MonkeyPatch, target: Any) -> None:
    """Processes that do something else than to answer."""
    monkeypatch.setattr(neighbours, "_answer", target)
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: fork)


def echo(*given: Any) -> None:
    """Loaded, and does at once what it is asked."""
    pipe = given[-1]
    pipe.send(True)
    with suppress(EOFError):
        while True:
            pipe.recv()
            pipe.send(True)


def deaf(*given: Any) -> None:
    given[-1].send(True)
    time.sleep(60)


def test_one_that_ends_or_hangs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, echo)
    with neighbours.neighbours(2, "model", {}, "fast") as others:
        for count in (0, 2, 1):
            others.run_only(count)
        child = multiprocessing.active_children()[0]
        child.kill()
        child.join()
        with pytest.raises(RuntimeError, match="has ended"):
            others.run_only(1)
    assert not multiprocessing.active_children()
    fake(monkeypatch, deaf)
    monkeypatch.setattr(neighbours, "REST", 0.05)
    hangs = pytest.raises(RuntimeError, match="has ended, or hangs")
    with neighbours.neighbours(1, "model", {}, "fast") as others, hangs:
        others.run_only(0)
    assert not multiprocessing.active_children()


def test_one_that_does_not_load_its_model_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, lambda *given: None)
    not_loaded = pytest.raises(RuntimeError, match="did not load the model")
    with not_loaded, neighbours.neighbours(1, "no-such-model", {}, "fast"):
        pass
    assert not multiprocessing.active_children()


def test_more_than_the_memory_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "free_memory", lambda device: 1 << 20)
    with (
        pytest.raises(
            ValueError, match=r"beside=64: .* need some [1-9].* GiB, and 0.0 GiB are free"
        ),
        neighbours.neighbours(64, "model", {}, "fast"),
    ):
        pass
