"""An engine that is held up where a test wants it: before each step, or while a prompt is tokenised."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastslow import LLM

SOON = 120.0  # seconds: other tests may run beside it


def open_llm(folder: Path, **options: Any) -> LLM:
    return LLM(folder, **{"kv_memory": "8MiB", "progress": False, **options})


class Gate:
    """Steps of the engine, let through one by one or all."""

    def __init__(self, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
        self._forward = llm.model.forward
        self._passes = threading.Semaphore(0)
        self._open = False
        self.reached = threading.Semaphore(0)
        monkeypatch.setattr(llm.model, "forward", self._wait)

    def _wait(self, *arguments: Any) -> Any:
        if not self._open:
            self.reached.release()
            assert self._passes.acquire(timeout=SOON)
        return self._forward(*arguments)

    def steps(self, count: int = 1) -> None:
        """Let this many steps through, and wait until the next one is reached."""
        for _ in range(count):
            self._passes.release()
            assert self.reached.acquire(timeout=SOON)

    def open(self) -> None:
        self._open = True
        self._passes.release()


def slowly(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A model's `forward` that takes ten milliseconds and more."""

    def slow(*arguments: Any) -> Any:
        time.sleep(0.01)
        return forward(*arguments)

    return slow


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """The engine's clock, by which requests end, goes this far ahead."""
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + seconds, perf_counter=time.perf_counter)
    monkeypatch.setattr("fastslow.engine.core.engine_core.time", clock)


class SlowTokenizer:
    """Has `encode` wait until it is let go."""

    def __init__(self, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
        assert llm.tokenizer is not None
        self._encode = llm.tokenizer.encode
        self.reached, self.go = threading.Event(), threading.Event()
        monkeypatch.setattr(llm.tokenizer, "encode", self.encode)

    def encode(self, text: str, *arguments: Any) -> list[int]:
        self.reached.set()
        assert self.go.wait(SOON)
        return self._encode(text, *arguments)


class StopThinking:
    """Has every request stop thinking after `steps` of it, between two steps."""

    def __init__(self, llm: LLM, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
        self._step, self._core, self._steps = llm._core.step, llm._core, steps
        self.closed: list[bool] = []
        monkeypatch.setattr(llm._core, "step", self._stepped)

    def _stepped(self) -> None:
        self._step()
        for request in self._core.scheduler.running:
            if request.spec_stats.steps == self._steps:
                self.closed.append(request.stop_thinking())


def settled(llm: LLM) -> bool:
    """Wait until nothing runs; whether all pages are back."""
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline and not (llm._core.idle and not llm._kv.requests):
        time.sleep(0.005)
    llm._kv.check_integrity()
    return not llm._kv.requests and llm._kv.free_pages == llm._kv.pages
