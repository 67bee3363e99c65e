"""What all ranks of a model must know to begin, and how they meet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.parallel.part import Part
from fastslow.engine.parallel.place import RankPlace
from fastslow.engine.parallel.spec import Parallel

BACKENDS = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}


@dataclass(frozen=True, slots=True)
class RankJob:
    """A model shared by ranks; all fields are JSON.

    Attributes:
        folder: of the checkpoint, the same path for all ranks.
        parallel: fields of `Parallel`.
        dtype: a torch dtype's name.
        device: cpu, cuda or npu.
    """

    folder: str
    parallel: dict[str, Any]
    dtype: str
    device: str

    def record(self) -> dict[str, Any]:
        return asdict(self)

    @contextmanager
    def met(self, rank: int, local: int, store: Store) -> Iterator[None]:
        """Join the process group of all ranks; left if the block fails.

        local: the rank among those of this machine, which picks its device.
        """
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

    def part(self, rank: int, local: int, progress: bool) -> Part:
        """This rank's part of the model, loaded. The process group must stand."""
        config = ModelConfig.from_folder(Path(self.folder))
        place = RankPlace.all(config, Parallel(**self.parallel))[rank]
        device = torch.device("cpu" if self.device == "cpu" else f"{self.device}:{local}")
        return Part(place, Path(self.folder), getattr(torch, self.dtype), device, progress)
