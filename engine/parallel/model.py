"""A model that several ranks run, and its keys and values, as the engine and the drafters see them."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
import torch.distributed as dist

from fastslow.engine.kv.storage import KVShape, KVStorage
from fastslow.engine.model.base import check_layers, check_step
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.parallel.commands import Command, CommandKind, fields, pack, pack_rows
from fastslow.engine.parallel.rank_group import RankGroup
from fastslow.engine.parallel.sharding import RankShard
from fastslow.engine.parallel.worker import DTYPES, RankFacts, ShardWorker, move
from fastslow.engine.types import Ints, ModelOutput, Rows

_numbers = itertools.count()


class ShardedStorage(KVStorage):
    """Rank 0's own rows, and commands for the other ranks to do the same with theirs.

    Slots are counted over all data-parallel ranks, one's after the other's; `slots`, `k` and `v` are of rank
    0's share and heads. Commands wait and go out with the next step. number: by which ranks know this storage."""

    tile = 0
    shard: ClassVar[RankShard]
    commands: ClassVar[deque[Command]]

    def __init__(self, shape: KVShape) -> None:
        own = -(-shape.slots // self.shard.dp_ranks)
        super().__init__(replace(shape, slots=own, kv_heads=self.shard.kv_heads))
        self.number = next(_numbers)
        sizes = (len(self.k), own, DTYPES.index(self.dtype))
        self.commands.append(Command(CommandKind.OPEN, fields([self.number], sizes)))
        gone = Command(CommandKind.FREE, fields([self.number]))
        weakref.finalize(self, self.commands.append, gone).atexit = False

    def move(self, src: Ints, dst: Ints) -> None:
        move(self.shard, self, src, dst)
        self.commands.append(Command(CommandKind.MOVE, fields([self.number], src, dst)))


def sharded_storage(own: RankShard, waiting: deque[Command], shared: bool) -> type[ShardedStorage]:
    """The storage of one model; shared: whether all ranks' rows lie in one memory, as on a CPU."""

    class Storage(ShardedStorage):
        shard = own
        commands = waiting
        dp_ranks = own.dp_ranks
        share = own.kv_heads / own.config.kv_heads * (own.attention if shared else 1 / own.dp_ranks)

    return Storage


class ParallelModel:
    """Rank 0's shard; every step goes to the other ranks first, which have loaded theirs."""

    def __init__(self, worker: ShardWorker, rank_group: RankGroup, dtype: torch.dtype) -> None:
        self.config: ModelConfig = worker.shard.config
        self.parallel = worker.shard.parallel
        self.dtype = dtype
        self.device = worker.device
        self._worker = worker
        self._rank_group = rank_group
        self._waiting: deque[Command] = deque()
        self._storage = sharded_storage(worker.shard, self._waiting, worker.device.type == "cpu")
        self.layers: tuple[int, ...] = tuple(range(self.config.layers))
        self._turn = threading.Lock()  # all ranks must get the commands of two threads in one order
        self._shut = weakref.finalize(self, _shut, rank_group)

    @property
    def storage(self) -> type[KVStorage]:
        return self._storage

    @property
    def pids(self) -> dict[int, int]:
        """Process ids of the other ranks."""
        return self._rank_group.pids

    def forward(self, rows: Rows, kv: KVStorage, features: tuple[int, ...] = ()) -> ModelOutput:
        """As `Decoder.forward`. RankError: a rank failed or is gone, and no later step will run."""
        check_step(rows, kv, self._storage, features, self.layers)
        assert isinstance(kv, ShardedStorage)
        self._check_dp_ranks(rows, kv.slots)
        named = ([kv.number], self.layers, features)
        with self._turn:
            self._send(Command(CommandKind.FORWARD, fields(*named, pack_rows(rows))))
            try:
                output = self._worker.decoder.forward(rows, kv, self.layers, features)
            except BaseException as error:
                self._rank_group.explain(error)
                raise
        assert output is not None
        return output

    def layer_subset(self, layers: Sequence[int]) -> ParallelModel:
        kept = object.__new__(ParallelModel)
        kept.__dict__.update(self.__dict__)
        kept.layers = check_layers(layers, self.layers)
        return kept

    def report(self, kv: KVStorage | None = None) -> list[RankFacts]:
        """What every rank holds and has sent. kv: the storage whose bytes rank 0 tells."""
        with self._turn:
            self._send(Command(CommandKind.REPORT, fields()))
            return self._worker.report(0 if kv is None else kv.nbytes)

    def close(self) -> None:
        """End the other ranks. Closing twice is fine."""
        if (
            self._rank_group.home.here
        ):  # else another thread may have held the lock when it was forked
            with self._turn:
                self._shut()

    def _check_dp_ranks(self, rows: Rows, size: int) -> None:
        if self._storage.dp_ranks == 1:
            return
        for b, context in enumerate(rows.contexts):
            own = rows.slots[rows.starts[b] : rows.starts[b + 1]]
            ranks = np.unique(np.concatenate((context, own)) // size)
            if len(ranks) > 1:
                raise ValueError(
                    f"request {b} of the step has slots on data-parallel ranks {ranks.tolist()}"
                )

    def _send(self, command: Command) -> None:
        self._waiting.append(command)
        commands = [self._waiting.popleft() for _ in range(len(self._waiting))]
        self._rank_group.send(pack(commands))


def _shut(rank_group: RankGroup) -> None:
    if not rank_group.home.here:
        return
    rank_group.close()
    if dist.is_initialized():
        dist.destroy_process_group()
