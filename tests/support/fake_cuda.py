"""A `torch.cuda` without a GPU: the current device, streams, events and graphs, and what was asked of them.

Tensors stay on the CPU, so numbers are right; `log` has what would have reached a GPU, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import npu_sim
import pytest
import torch

from fastslow.engine.backends.accelerator.cuda import CudaOps
from fastslow.engine.backends.accelerator.kv import BlockTables
from fastslow.engine.backends.accelerator.ops import Graph
from fastslow.engine.model.config import ModelConfig

DEVICE = torch.device("cuda", 1)


class FakeCuda:
    """Two GPUs, of which number 0 is the current one. log: (what, current device) in order. failing: what a
    capture raises when it ends, as CUDA does; None: it works."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self.capability = capability
        self.current = 0
        self.stream: Any = FakeStream(self, DEVICE)
        self.log: list[tuple[str, int]] = []
        self.failing: Exception | None = None
        self.modes: list[str] = []
        self.pools: list[int] = []
        self.capturing = False
        self.pinned: list[torch.Tensor] = []

    def say(self, what: str) -> None:
        self.log.append((what, self.current))

    @property
    def said(self) -> list[str]:
        return [what for what, _ in self.log]

    def install(self, patch: pytest.MonkeyPatch) -> None:
        def pool() -> int:
            self.pools.append(len(self.pools))
            return self.pools[-1]

        def pin(tensor: torch.Tensor) -> torch.Tensor:
            self.pinned.append(tensor)
            return tensor

        made = {
            "device": self.device,
            "Stream": lambda device: FakeStream(self, device),
            "stream": self.use,
            "current_stream": lambda: self.stream,
            "set_stream": lambda stream: setattr(self, "stream", stream),
            "Event": lambda: SimpleNamespace(
                record=lambda: self.say("record"), synchronize=lambda: self.say("synchronize")
            ),
            "graph_pool_handle": pool,
            "CUDAGraph": lambda: FakeGraph(self),
            "graph": self.graph,
            "get_device_capability": lambda device: self.capability,
            "current_device": lambda: self.current,
            "device_count": lambda: 2,
            "is_available": lambda: True,
        }
        for name, value in made.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch.Tensor, "pin_memory", pin)

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, device.index
        yield
        self.current = before

    @contextmanager
    def use(self, stream: FakeStream) -> Iterator[None]:
        before, self.stream = self.stream, stream
        yield
        self.stream = before

    @contextmanager
    def graph(
        self, graph: FakeGraph, pool: int, stream: FakeStream | None = None, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        """As torch's: without a stream it takes one of the device that was the current one when first
        asked; where the capture fails, the stream stays the current one."""
        self.say("capture")
        self.modes.append(capture_error_mode)
        graph.pool, before = pool, self.stream
        self.stream = stream or FakeStream(self, torch.device("cuda", self.current))
        self.capturing = True
        try:
            with npu_sim.graph(graph.sim):
                yield
        finally:
            self.capturing = False
        if self.failing is not None:
            raise self.failing
        self.stream = before


class FakeStream:
    def __init__(self, cuda: FakeCuda, device: torch.device) -> None:
        self.device = device
        self._cuda = cuda

    def wait_stream(self, other: FakeStream) -> None:
        self._cuda.say("wait")


class FakeGraph:
    pool: int

    def __init__(self, cuda: FakeCuda) -> None:
        self.sim = npu_sim.NPUGraph()
        self._cuda = cuda

    def replay(self) -> None:
        self._cuda.say("replay")
        self.sim.replay()


class Recording:
    """A graph on CPU tensors, with nothing but `replay`, as CUDA's."""

    def __init__(self, run: Callable[[], None]) -> None:
        self._graph = npu_sim.NPUGraph()
        with npu_sim.graph(self._graph):
            run()

    def replay(self, runs: Sequence[BlockTables]) -> None:
        self._graph.replay()


class RecordingOps(CudaOps):
    """Steps are recorded as they are on a GPU."""

    def check(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().check(config, dtype)
        self.records = not config.chosen or self._grouped(dtype)

    def record(self, run: Callable[[], None]) -> Graph:
        return Recording(run)
