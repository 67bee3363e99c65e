"""A model on several ranks, held against the same model on one."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from engine_tools import Bench
from exact_tools import make_bench
from torch import Tensor

from fastslow import LLM
from fastslow.engine.backends.torch.decoder import Decoder
from fastslow.engine.backends.torch.weights import Weights
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.base import Model
from fastslow.engine.model.ops import Ops
from fastslow.engine.parallel.collectives import Collectives
from fastslow.engine.parallel.decoder import ShardReader, shard_weights
from fastslow.engine.parallel.model import ParallelModel, load_parallel
from fastslow.engine.parallel.sharding import Parallel, RankShard

SOON = 60.0  # seconds: other tests may run beside it


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
    """Tell whether the processes end, soon."""
    end = time.monotonic() + SOON
    while time.monotonic() < end:
        if not any(os.path.exists(f"/proc/{pid}") for pid in pids):
            return True
        time.sleep(0.02)
    return False


class Counting(Collectives):
    """Rank 0's collectives, with the bytes that all ranks of the model send in them."""

    def __init__(self, inner: Collectives, name: str, ranks: int, sent: Counter[str]) -> None:
        self.inner, self.name, self.ranks, self.sent = inner, name, ranks, sent
        self.size = inner.size

    def all_gather(self, x_nH: Tensor) -> Tensor:
        self.sent[f"{self.name} all-gather"] += x_nH.nbytes * (self.size - 1) * self.ranks
        return self.inner.all_gather(x_nH)

    def reduce_scatter(self, partial_PH: Tensor) -> Tensor:
        each = partial_PH.nbytes // self.size
        self.sent[f"{self.name} reduce-scatter"] += each * (self.size - 1) * self.ranks
        return self.inner.reduce_scatter(partial_PH)

    def gather(self, x: Tensor) -> list[Tensor] | None:
        self.sent[f"{self.name} gather"] += x.nbytes * (self.size - 1)
        return self.inner.gather(x)


def counted(model: ParallelModel) -> Counter[str]:
    """Bytes by collective, from now on: "attention" of the ranks that share a copy of it, and "all"."""
    sent: Counter[str] = Counter()
    decoder, ranks = model._worker.decoder, model.parallel.ranks
    decoder.dp_group = Counting(decoder.dp_group, "attention", ranks, sent)
    decoder.everyone = Counting(decoder.everyone, "all", ranks, sent)
    return sent


def traffic(model: ParallelModel, rows: int, bytes_each: int) -> dict[str, int]:
    """Bytes that all ranks send in a layer, by collective. rows: with padding."""
    row, place = rows * model.config.hidden_size * bytes_each, RankShard.all(model.config, model.parallel)[0]
    sides = ("attention", row * (place.attention - 1)), ("all", row * (model.parallel.ranks - 1))
    return {f"{side} {kind}": size for side, size in sides for kind in ("all-gather", "reduce-scatter")}


def part_bytes(place: RankShard, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of weights that a rank holds, and of those that it reads; nothing is allocated."""
    sizes = []

    def read(name: str, part: Sequence[slice]) -> Tensor:
        found = torch.empty([s.stop - s.start for s in part], dtype=dtype, device="meta")
        sizes.append(found.nbytes)
        return found

    made = shard_weights(place, Ops(), dtype, torch.device("meta"), ShardReader(place, read))
    return weight_bytes(made), sum(sizes)


def check_memory(model: ParallelModel, kv: KVStorage, dtype: torch.dtype) -> None:
    """Rank 0 holds its part alone of weights, and of keys and values of its slots."""
    place = RankShard.all(model.config, model.parallel)[0]
    assert weight_bytes(model._worker.decoder.weights) == part_bytes(place, dtype)[0]
    assert kv.nbytes == kv.slots * place.local.state_layout.token_bytes(dtype)


def weight_bytes(weights: Any) -> int:
    """Bytes of the tensors in weights; one tensor under two names counts once."""
    return sum({id(x): x.nbytes for x in _tensors(weights)}.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        yield from (x for part in value for x in _tensors(part))
    elif is_dataclass(value) or isinstance(value, Weights):
        names = vars(value) if isinstance(value, Weights) else (field.name for field in fields(value))
        yield from (x for name in names for x in _tensors(getattr(value, name)))
    elif isinstance(value, dict):
        yield from (x for part in value.values() for x in _tensors(part))
