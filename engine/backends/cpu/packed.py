"""Pieces that a model's weights are packed to, and where each lies in memory or in a file."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from mmap import mmap
from threading import Lock, local
from typing import BinaryIO

import numpy as np

from fastslow.engine.backends.cpu.formats import (
    Bytes,
    Formats,
    Piece,
    Sources,
    Vector,
)
from fastslow.engine.backends.cpu.pieces.layers import pieces
from fastslow.engine.model.config import ModelConfig

COLD = ("embedding",)  # read a row at a time: it can stay in the file
ALIGN, PAGE = 64, 4096  # bytes


@dataclass(frozen=True, slots=True)
class Arena:
    """Places of all pieces in one run of memory. hot: bytes that every step reads from; the rest, from a new page
    on, is cold."""

    pieces: dict[str, Piece]
    offsets: dict[str, int]
    hot: int
    nbytes: int

    @property
    def cold_rows(self) -> bool:
        """True where every cold piece has rows that lie in one piece each."""
        return all(isinstance(self.pieces[key], Vector) for key in COLD if key in self.pieces)

    @classmethod
    def of(cls, config: ModelConfig, formats: Formats) -> Arena:
        """Lay the pieces one after the other, each from a new cache line on."""
        found = {piece.key: piece for piece in pieces(config, formats)}
        offsets, at, hot = {}, 0, 0
        for key in sorted(found, key=lambda key: key in COLD):  # stable: else in a step's order
            if key in COLD and not hot:
                hot = at = -(-at // PAGE) * PAGE
            offsets[key] = at
            at += -(-found[key].nbytes // ALIGN) * ALIGN
        return cls(found, offsets, hot or at, at)  # all is hot where nothing is cold

    def write(self, into: Bytes, sources: Sources) -> None:
        """Fill memory of `nbytes` bytes that begins on a cache line."""

        def write(key: str) -> None:
            piece = self.pieces[key]
            piece.write(into[self.offsets[key] :][: piece.nbytes], sources)

        self._each(write, sources)

    def save(self, file: BinaryIO, sources: Sources) -> None:
        """Fill a file, piece by piece: in a mapped one each page would be a fault, 40 times slower."""
        turn, own = Lock(), local()  # each thread has one room, since new memory faults, too

        def save(key: str) -> None:
            piece = self.pieces[key]
            if len(getattr(own, "room", b"")) < piece.nbytes:
                own.room = np.frombuffer(mmap(-1, piece.nbytes), np.uint8)
            made = own.room[: piece.nbytes]
            made[:] = 0
            piece.write(made, sources)
            with turn:
                file.seek(self.offsets[key])
                file.write(made.data)

        self._each(save, sources)

    def _each(self, write: Callable[[str], None], sources: Sources) -> None:
        left = iter(self.pieces)  # a future for each takes as long as to pack a small one

        def some() -> None:
            for key in left:
                write(key)

        with ThreadPoolExecutor(sources.at_once, "fastslow-pack") as pool:
            try:
                for over in as_completed([pool.submit(some) for _ in range(sources.at_once)]):
                    over.result()
            finally:
                list(left)  # where one failed, or Ctrl-C came, the others end
