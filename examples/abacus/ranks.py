"""Data parallel training by processes of one thread each: on a busy machine they wait for each other
once a step, where the threads of one process wait at every operation."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn


@dataclass(slots=True)
class Rank:
    """This process among `count`; rank 0 evaluates, saves and reports, and gets Ctrl-C."""

    rank: int
    count: int
    stopped: bool = False

    def listen(self) -> None:
        """Let Ctrl-C set `stopped`, once: a second one ends the process."""

        def stop(*_: object) -> None:
            self.stopped = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        signal.signal(signal.SIGINT, stop if self.rank == 0 else signal.SIG_IGN)

    def mean(self, tensors: list[Tensor]) -> None:
        """Replace the tensors by their means over the ranks."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.count
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def broadcast(self, value: float) -> float:
        """Rank 0's value, to all."""
        if self.count == 1:
            return value
        sent = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(sent, 0)
        return float(sent)


def run_ranks(work: Callable[[Rank], None], count: int) -> None:
    """Run `work` in `count` processes; returns when all are done."""
    if count == 1:
        alone = Rank(0, 1)
        alone.listen()
        work(alone)
        return
    with TemporaryDirectory() as folder:
        arguments = (work, count, Path(folder) / "store")
        ranks = spawn(_join, arguments, nprocs=count, join=False, daemon=True)
        done = False
        while not done:
            with suppress(KeyboardInterrupt):  # rank 0 has it too, and keeps what there is
                done = ranks.join()


def _join(number: int, work: Callable[[Rank], None], count: int, store: Path) -> None:
    rank = Rank(number, count)
    rank.listen()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=count)
    try:
        work(rank)
    finally:
        dist.destroy_process_group()
