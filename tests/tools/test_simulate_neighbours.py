"""Engines that compute beside the one that is measured: they end with whoever started them."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import pytest
import torch

from fastslow.tools.simulate import neighbours
from fastslow.tools.simulate.neighbours import Neighbours, check_memory

answer: Any = neighbours._answer


class Told:
    """The pipe to whoever started it."""

    def __init__(self) -> None:
        self.said: list[bool] = []
        self.closed = False

    def send(self, value: bool) -> None:
        self.said.append(value)

    def close(self) -> None:
        self.closed = True


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
    lives = iter([True, True, True, False])
    parent = SimpleNamespace(is_alive=lambda: next(lives))
    handled: list[tuple[int, Any]] = []
    monkeypatch.setattr(Engine, "asked", [])
    monkeypatch.setattr(neighbours, "LLM", Engine)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    monkeypatch.setattr(signal, "signal", lambda *given: handled.append(given))
    told = Told()
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    asked, rests = threading.Event(), threading.Event()
    asked.set()
    answer("model", {"max_model_len": 40}, "fast", 3, told, asked, rests)
    assert threads == [3] and not rests.is_set()
    assert len(Engine.asked) == 3 and told.said == [True] and told.closed
    assert {len(prompt) for prompts in Engine.asked for prompt in prompts} == {
        40 - neighbours.ANSWER
    }
    assert handled == [(signal.SIGINT, signal.SIG_IGN)]


def test_they_rest_when_they_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, rests = threading.Event(), threading.Event()
    looks = iter([True, True, True, False])

    def alive() -> bool:
        """At its second look it rests; it is asked to go on from the third one on."""
        if rests.is_set():
            asked.set()
        return next(looks)

    monkeypatch.setattr(Engine, "asked", [])
    monkeypatch.setattr(neighbours, "LLM", Engine)
    monkeypatch.setattr(neighbours, "LOOK", 0.001)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: SimpleNamespace(is_alive=alive))
    monkeypatch.setattr(signal, "signal", lambda *given: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    answer("model", {"max_model_len": 40}, "fast", 1, Told(), asked, rests)
    assert len(Engine.asked) == 2 and not rests.is_set()


def test_one_that_does_not_come_to_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "REST", 0.001)
    others = Neighbours("model", {}, "fast")
    pairs = [(threading.Event(), threading.Event()) for _ in range(2)]
    others._all = [neighbours._Neighbour(SimpleNamespace(), *pair) for pair in pairs]  # type: ignore[arg-type]
    others.run_only(2)
    assert all(asked.is_set() for asked, _ in pairs)
    pairs[1][1].set()
    others.run_only(1)
    assert pairs[0][0].is_set() and not pairs[1][0].is_set()
    with pytest.raises(RuntimeError, match="does not come to rest"):
        others.run_only(0)


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
