"""All packed pieces of a model in one run of memory or one file."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from mmap import mmap
from threading import Lock, local
from typing import BinaryIO

import numpy as np

from fastslow.engine.backends.cpu.formats import Formats
from fastslow.engine.backends.cpu.packed import COLD, pieces
from fastslow.engine.backends.cpu.pieces import Bytes, Piece, Sources, Vector
from fastslow.engine.model.config import ModelConfig

ALIGN = 64
PAGE = 4096


@dataclass(frozen=True, slots=True)
class Arena:
    """Where each piece lies in one run of memory.

    hot: bytes that every step reads from; the rest, from a new page on, is cold.
    """

    pieces: dict[str, Piece]
    offsets: dict[str, int]
    hot: int
    nbytes: int

    @property
    def cold_rows(self) -> bool:
        """Whether all that is cold has rows that lie in one piece each."""
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
        with ThreadPoolExecutor(sources.at_once, "fastslow-pack") as pool:
            for _ in pool.map(write, self.pieces):
                pass
