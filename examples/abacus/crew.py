"""Processes of one thread each that train one model: on a busy machine they wait for each other once
a step, where the threads of one process wait at every operation."""

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
class Crew:
    """This process among `count`; rank 0 looks, keeps and reports, and hears of Ctrl-C."""

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
        """Replace the tensors by their means over the crew."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.count
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def tell(self, value: float) -> float:
        """Rank 0's value, to all."""
        if self.count == 1:
            return value
        said = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(said, 0)
        return float(said)


def together(work: Callable[[Crew], None], count: int) -> None:
    """Run `work` in so many processes; returns when all are done."""
    if count == 1:
        alone = Crew(0, 1)
        alone.listen()
        work(alone)
        return
    with TemporaryDirectory() as folder:
        arguments = (work, count, Path(folder) / "store")
        crew = spawn(_join, arguments, nprocs=count, join=False, daemon=True)
        done = False
        while not done:
            with suppress(KeyboardInterrupt):  # rank 0 has it too, and keeps what there is
                done = crew.join()


def _join(rank: int, work: Callable[[Crew], None], count: int, store: Path) -> None:
    crew = Crew(rank, count)
    crew.listen()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count)
    try:
        work(crew)
    finally:
        dist.destroy_process_group()
