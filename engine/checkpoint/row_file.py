"""A matrix on disk of which few rows are wanted."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastslow.engine.host.files import MOST_BYTES, parse_object
from fastslow.engine.types import Floats

DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16}


class OpenFile:
    """A file that is open for reading as long as this object lives. number: the system's, for `os.pread`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self.number)


@dataclass(frozen=True, slots=True)
class RowFile:
    """A matrix of bfloat16, float16 or float32, its first row at byte `at`. Rows are read as they are asked for, and not
    kept: a mapped file would keep them, and some fifteen pages around each."""

    file: OpenFile
    at: int
    shape: tuple[int, int]
    dtype: torch.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Rows i64 [n], as [n, elements]. OSError where the file lacks one."""
        values = torch.from_numpy(self._read(rows.tolist()))
        return values.view(self.dtype).view(len(rows), self.shape[1])

    def floats(self, rows: Sequence[int]) -> Floats:
        """Rows as f32 [n, elements], without torch: between two steps its code is in no cache."""
        found = self._read(rows)
        if self.dtype == torch.bfloat16:
            found = found.view(np.uint16).astype(np.uint32) << 16
        elif self.dtype == torch.float16:
            found = found.view(np.float16).astype(np.float32)
        return found.view(np.float32).reshape(len(rows), self.shape[1])

    def _read(self, rows: Sequence[int]) -> NDArray[np.generic]:
        size = self.shape[1] * self.dtype.itemsize
        found = np.empty(len(rows) * size, dtype=np.uint8)
        for i, row in enumerate(rows):
            some = os.pread(self.file.number, size, self.at + row * size)
            if len(some) < size:
                raise OSError(f"{self.file.path} ends before row {row}")
            found[i * size : (i + 1) * size] = np.frombuffer(some, dtype=np.uint8)
        return found

    @classmethod
    def of_tensor(cls, path: Path, name: str) -> RowFile | None:
        """A matrix in a safetensors file; None where it is of another dtype, or the system cannot read at a place."""
        if not hasattr(os, "pread"):
            return None
        file = OpenFile(path)
        size = int.from_bytes(os.pread(file.number, 8, 0), "little")
        facts = parse_object(os.pread(file.number, min(size, MOST_BYTES), 8), str(path)).get(name)
        if facts is None:
            raise ValueError(f"{path} lacks tensor {name}")
        if facts["dtype"] not in DTYPES:
            return None
        (rows, width), dtype = facts["shape"], DTYPES[facts["dtype"]]
        begin, end = facts["data_offsets"]
        if end - begin != rows * width * dtype.itemsize:
            raise ValueError(
                f"{path}: tensor {name} is of {end - begin} bytes, not of {facts['shape']}"
            )
        return cls(file, 8 + size + begin, (rows, width), dtype)
