"""Work that a long job has done, in a folder beside its output: cut off, the next call of the same job goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from loguru import logger
from safetensors.torch import load_file, save_file
from torch import Tensor

import fastslow
from fastslow.engine.checked import Params
from fastslow.engine.checkpoint.identity import model_digest
from fastslow.engine.host.files import read_object
from fastslow.models.folder import require_vacant, write_json

JOB = "job.json"
Tensors = dict[str, Tensor]


class KeptWork:
    """Parts of a job in OUT.work, each a file of tensors, for one source and these options alone: what another job left
    there goes. ValueError: the folder is there, and no job's."""

    def __init__(self, out: Path, source: Path, options: Params) -> None:
        self.folder = folder = out.with_name(f"{out.name}.work")
        files = [str(path.stat().st_mtime_ns) for _, path in options if isinstance(path, Path)]
        facts = {"version": fastslow.__version__, "model": model_digest(source), "files": files}
        job = {**facts, "options": options.model_dump(mode="json")}
        if (folder / JOB).is_file():
            if read_object(folder / JOB) == job:
                logger.info("{} keeps what was done before: the job goes on from there", folder)
                return
            self.drop()
        require_vacant(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / JOB, job)

    def part(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        """Return one part; it is made and kept if it is not there."""
        path = self.folder / name
        return load_file(path) if path.is_file() else self.keep(name, make())

    def keep(self, name: str, tensors: Tensors) -> Tensors:
        """Keep a part that was made, and return it."""
        work = self.folder / "unfinished"
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, work)
        work.rename(self.folder / name)
        return tensors

    def lists(self, name: str, make: Callable[[], Iterable[list[int]]]) -> list[list[int]]:
        """The same for lists of numbers."""
        as_ids = lambda: {
            f"{n:06}": torch.tensor(x, dtype=torch.int64) for n, x in enumerate(make())
        }
        return [ids.tolist() for _, ids in sorted(self.part(name, as_ids).items())]

    def drop(self, name: str | None = None) -> None:
        """Remove a part, or all, as the job is done."""
        if name is None:
            shutil.rmtree(self.folder)
        else:
            (self.folder / name).unlink(missing_ok=True)
