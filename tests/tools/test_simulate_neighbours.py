"""Engines that compute beside the one that is measured: they end with whoever started them."""

from __future__ import annotations

import multiprocessing
import signal
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import pytest
import torch

from fastslow.tools.simulate import neighbours
from fastslow.tools.simulate.neighbours import Neighbours, check_memory

answer: Any = neighbours._answer


class Pipe:
    """To whoever started it: what that says at each look, None = nothing; then it is gone."""

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


def test_they_end_with_who_started_them_and_ctrl_c_is_not_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that is killed cannot end its children, and these would compute for ever."""
    handled: list[tuple[int, Any]] = []
    threads: list[int] = []
    monkeypatch.setattr(Engine, "asked", [])
    monkeypatch.setattr(neighbours, "LLM", Engine)
    monkeypatch.setattr(signal, "signal", lambda *given: handled.append(given))
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    pipe = Pipe(None, None, None)
    answer("model", {"max_model_len": 40}, "fast", 3, pipe)
    assert threads == [3] and len(Engine.asked) == 3 and pipe.said == 1
    assert {len(prompt) for prompts in Engine.asked for prompt in prompts} == {
        40 - neighbours.ANSWER
    }
    assert handled == [(signal.SIGINT, signal.SIG_IGN)]


def test_they_rest_when_they_are_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "asked", [])
    monkeypatch.setattr(neighbours, "LLM", Engine)
    monkeypatch.setattr(signal, "signal", lambda *given: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    pipe = Pipe(None, False, False, True, None)
    answer("model", {"max_model_len": 40}, "fast", 1, pipe)
    assert len(Engine.asked) == 3 and pipe.said == 4  # one for the first answer, one for each word


def quick_neighbours(monkeypatch: pytest.MonkeyPatch, *targets: Any) -> Neighbours:
    """Processes that do something else than to answer."""
    others = Neighbours("model", {}, "fast")
    monkeypatch.setattr(others, "_context", multiprocessing.get_context("fork"))
    for target in targets:
        monkeypatch.setattr(neighbours, "_answer", target)
        others.start_one()
    return others


def echo(*given: Any) -> None:
    """Loaded, and does at once what it is told."""
    pipe = given[-1]
    pipe.send(True)
    with suppress(EOFError):
        while True:
            pipe.recv()
            pipe.send(True)


def deaf(*given: Any) -> None:
    given[-1].send(True)
    time.sleep(60)


def test_one_that_ends_or_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with quick_neighbours(monkeypatch, echo, echo) as others:
        for count in (0, 2, 1):
            others.run_only(count)
        others._all[0].process.kill()
        others._all[0].process.join()
        with pytest.raises(RuntimeError, match="has ended"):
            others.run_only(1)
    monkeypatch.setattr(neighbours, "REST", 0.05)
    hangs = pytest.raises(RuntimeError, match="has ended, or hangs")
    with quick_neighbours(monkeypatch, deaf) as others, hangs:
        others.run_only(0)
    assert not multiprocessing.active_children()


def test_one_that_does_not_load_its_model_is_told() -> None:
    others = Neighbours("no-such-model", {}, "fast")
    with pytest.raises(RuntimeError, match="did not load the model"), others:
        others.start_one()
    assert not multiprocessing.active_children()


def test_more_than_the_memory_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_memory(1)
    monkeypatch.setattr(neighbours, "free_memory", lambda device: 1 << 20)
    with pytest.raises(
        ValueError, match=r"beside=64: .* need some [1-9].* GiB, and 0.0 GiB are free"
    ):
        check_memory(64)
