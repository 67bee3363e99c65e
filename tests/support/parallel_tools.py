"""A model on several ranks, held against the same model on one."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine_tools import Bench
from exact_tools import make_bench

from fastslow import LLM
from fastslow.engine.model.base import Model
from fastslow.engine.model.decoder import Decoder
from fastslow.engine.parallel.model import ParallelModel
from fastslow.engine.parallel.sharding import Parallel
from fastslow.engine.parallel.start import load_parallel

SOON = 10.0  # seconds


@contextmanager
def ranks(folder: Path, layout: str, dtype: str = "float32") -> Iterator[ParallelModel]:
    """The checkpoint on the ranks of "ep=2,tp=1"."""
    model = load_parallel(folder, Parallel.parse(layout), dtype, "cpu", progress=False)
    try:
        yield model
    finally:
        model.close()


@contextmanager
def bench_on(folder: Path, layout: str, kind: str = "moge", **fields: Any) -> Iterator[Bench]:
    """The bench of `exact_tools` on several ranks; what it must equal is said by one rank."""
    opened: list[ParallelModel] = []

    def load(path: Path, **options: Any) -> Model:
        opened.append(load_parallel(path, Parallel.parse(layout), **options))
        return opened[0]

    plain = make_bench(folder / "one", kind, **fields)
    assert isinstance(plain.model, Decoder) or not opened
    try:
        bench = make_bench(folder / "many", kind, load=load, **fields)
        bench.alone = plain.alone  # type: ignore[method-assign]
        yield bench
    finally:
        for model in opened:
            model.close()


def open_llm(folder: Path, parallel: Any = "ep=2", **options: Any) -> LLM:
    given = {"dtype": "float32", "kv_memory": "4MiB", "progress": False, "speculation": "off"}
    return LLM(folder, parallel=parallel, **{**given, **options})


def gone(pids: Collection[int]) -> bool:
    """Whether the processes end, soon."""
    end = time.monotonic() + SOON
    while time.monotonic() < end:
        if not any(os.path.exists(f"/proc/{pid}") for pid in pids):
            return True
        time.sleep(0.02)
    return False
