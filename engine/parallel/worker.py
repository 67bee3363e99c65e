"""A rank's shard of a model and of its KV, and what every rank but the first does: it loads its shard
and runs the commands of rank 0 until that says so or is gone, whatever it is doing then."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from loguru import logger
from torch._C._distributed_c10d import FileStore
from torch.distributed.distributed_c10d import Store

from fastslow.engine.backends.device import ops_for
from fastslow.engine.checkpoint.checkpoint import Checkpoint
from fastslow.engine.kv.state.running import RunningStates
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.parallel.collectives import Collectives
from fastslow.engine.parallel.commands import receive, send_json, unpack, unpack_rows
from fastslow.engine.parallel.decoder import ShardDecoder, shard_reader, shard_weights
from fastslow.engine.parallel.sharding import Parallel, RankShard
from fastslow.engine.types import Ints


class ShardWorker:
    """Runs a rank's shard of a checkpoint. The process group must stand; all ranks make theirs at once."""

    def __init__(
        self,
        shard: RankShard,
        folder: Path,
        dtype: torch.dtype,
        device: torch.device,
        progress: bool,
    ) -> None:
        self.shard = shard
        self.device = device
        ranks = torch.arange(shard.parallel.ranks).view(shard.dp_ranks, shard.attention)
        patience = timedelta(seconds=shard.parallel.timeout)
        dp_group, _ = dist.new_subgroups_by_enumeration(ranks.tolist(), timeout=patience)
        everyone = Collectives(dist.group.WORLD, shard.parallel.ranks)
        checkpoint = Checkpoint.open(folder, shard.config)
        with shard_reader(checkpoint, shard, progress) as read:
            weights = shard_weights(shard, ops_for(device.type), dtype, device, read)
        self.decoder = ShardDecoder(
            shard, weights, Collectives(dp_group, shard.attention), everyone
        )
        self.storages: dict[int, KVStorage] = {}

    def open(self, number: int, slots: int, dtype: str) -> None:
        """Make the storage of keys and values that is known by a number."""
        layout = self.shard.local.state_layout
        self.storages[number] = KVStorage(layout, slots, getattr(torch, dtype), self.device)

    def free(self, number: int) -> None:
        """Let go of a storage."""
        del self.storages[number]

    def move(self, number: int, src: Sequence[int], dst: Sequence[int]) -> None:
        """See `KVStorage.move`."""
        ends = (np.asarray(slots, dtype=np.int64) for slots in (src, dst))
        move(self.shard, self.storages[number], *ends)

    def states(self, number: int, places: int, snapshots: int) -> None:
        """Make the running states of a storage."""
        kv = self.storages[number]
        kv.running = RunningStates(kv.layout, places, snapshots, kv.dtype, self.device)

    def change_states(self, number: int, method: str, *arguments: Any) -> None:
        """Clear, copy or move a storage's running states."""
        states = self.storages[number].running
        assert states is not None
        known: dict[str, Callable[..., None]]
        known = {"clear": states.clear, "copy": states.copy, "move": states.move}
        known[method](*arguments)

    def forward(
        self, number: int, layers: Sequence[int], features: Sequence[int], rows: dict[str, Any]
    ) -> None:
        """This rank's part of a step."""
        self.decoder.forward(unpack_rows(rows), self.storages[number], layers, features)

    def draft(self, number: int, head: int, rows: dict[str, Any]) -> None:
        """This rank's part of a step of a layer for multi-token prediction."""
        self.decoder.draft(unpack_rows(rows), None, self.storages[number], head)


def move(shard: RankShard, kv: KVStorage, src: Ints, dst: Ints) -> None:
    """Copy the rows of this data-parallel rank. ValueError: a row would leave its data-parallel rank."""
    if (src // kv.slots != dst // kv.slots).any():
        raise ValueError("rows of keys and values cannot move between data-parallel ranks")
    own = src // kv.slots == shard.dp_rank
    first = shard.dp_rank * kv.slots
    if own.any():
        KVStorage.move(kv, src[own] - first, dst[own] - first)


BACKENDS = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}


@dataclass(frozen=True, slots=True)
class RankJob:
    """A model shared by ranks; all fields are JSON. parallel: fields of `Parallel`. dtype: a torch dtype's name. heads:
    layers for multi-token prediction that are there."""

    folder: str
    parallel: dict[str, Any]
    dtype: str
    device: str
    heads: int

    @contextmanager
    def process_group(self, rank: int, local: int, store: Store) -> Iterator[None]:
        """Join the process group of all ranks; left if the block fails. local: which device here."""
        parallel = Parallel(**self.parallel)
        if self.device != "cpu":
            torch.get_device_module(self.device).set_device(local)
        dist.init_process_group(
            BACKENDS[self.device],
            store=store,
            rank=rank,
            world_size=parallel.ranks,
            timeout=timedelta(seconds=parallel.timeout),
        )
        try:
            yield
        except BaseException:
            dist.destroy_process_group()
            raise

    def worker(self, rank: int, local: int, progress: bool) -> ShardWorker:
        config = ModelConfig.from_folder(Path(self.folder)).drafting(self.heads)
        shard = RankShard.all(config, Parallel(**self.parallel))[rank]
        device = torch.device("cpu" if self.device == "cpu" else f"{self.device}:{local}")
        return ShardWorker(shard, Path(self.folder), getattr(torch, self.dtype), device, progress)


def worker_loop(
    address: tuple[str, int], token: str, rank: int, local: int, store: Store
) -> NoReturn:
    """Serve rank 0, which knows its ranks by `token`, until it is done; then the process ends."""
    for name in (
        "SIGINT",
        "SIGHUP",
        "SIGUSR1",
        "SIGUSR2",
    ):  # they are for rank 0, which ends the others
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    logger.enable("fastslow")  # a process of our own, with nobody else's log in it
    logger.remove()
    logger.add(sys.stderr, level="WARNING", format=f"rank {rank}: {{message}}")
    try:
        connection = socket.create_connection(address)
    except OSError:
        os._exit(1)  # rank 0 ended meanwhile
    send_json(connection, {"token": token, "rank": rank, "pid": os.getpid()})
    frames: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, frames), daemon=True).start()
    try:
        job = RankJob(**json.loads(frames.get()))
        with job.process_group(rank, local, store):
            worker = job.worker(rank, local, progress=False)
            send_json(connection, {"loaded": rank})
            while frame := frames.get():
                for method, arguments in unpack(frame):
                    getattr(worker, method)(*arguments)
        dist.destroy_process_group()
    except Exception as error:  # noqa: BLE001 - whatever it is, rank 0 must know
        why = " ".join(f"{type(error).__name__}: {error}".split())
        try:
            send_json(connection, {"failed": why})
        finally:
            os._exit(1)  # others may be waiting for this rank inside a collective
    os._exit(0)  # at once: what torch tears down at the end of a process took five seconds


def _listen(connection: socket.socket, frames: SimpleQueue[bytes]) -> None:
    while (frame := receive(connection)) is not None:
        frames.put(frame)
        if not frame:  # rank 0 is done
            return
    os._exit(1)  # rank 0 is gone


def main() -> None:
    """Serve until rank 0 is done."""
    given = json.loads(sys.stdin.buffer.read())
    store = FileStore(given["store"], given["ranks"])
    worker_loop(tuple(given["address"]), given["token"], given["rank"], given["rank"], store)


if __name__ == "__main__":
    main()
