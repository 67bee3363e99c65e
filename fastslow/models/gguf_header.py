"""The header of a GGUF file, which says all but the weights: read alone, and no further than it goes."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
MOST_AXES = 8


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a file says of itself.

    Attributes:
        meta: values by name.
        tensors: shapes by name, the fastest axis first, as the file has them.
    """

    meta: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]

    @classmethod
    def read(cls, file: Path) -> GgufHeader:
        """The header of a file.

        Raises:
            ValueError: it is no GGUF file, or ends within its header; one sentence with its name.
        """
        with file.open("rb") as stream:
            reader = _HeaderReader(stream, file.stat().st_size)
            try:
                if reader.take(len(MAGIC)) != MAGIC:
                    raise ValueError("it does not begin with GGUF")
                if (version := reader.number("I")) not in VERSIONS:
                    raise ValueError(f"version {version} is none of {VERSIONS}, as little-endian")
                tensors, values = reader.number("Q"), reader.number("Q")
                reader.check(24 * tensors + 12 * values)  # what they take at least
                meta = {reader.text(): reader.value() for _ in range(values)}
                return cls(meta, dict(reader.tensor() for _ in range(tensors)))
            except ValueError as error:
                raise ValueError(f"GGUF file {str(file)!r} cannot be read: {error}") from None


class _HeaderReader:
    """Reads values one after the other, never more than the file holds."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._left = stream, size

    def check(self, size: int) -> None:
        """ValueError where the file holds less."""
        if size > self._left:
            raise ValueError("it ends within its header, or its header is damaged")

    def take(self, size: int) -> bytes:
        self.check(size)
        self._left -= size
        return self._stream.read(size)

    def number(self, kind: str) -> int:
        value: int = struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]
        return value

    def text(self) -> str:
        return self.take(self.number("Q")).decode()

    def value(self) -> Any:
        return self._of_kind(self.number("I"))

    def tensor(self) -> tuple[str, tuple[int, ...]]:
        name, axes = self.text(), self.number("I")
        if axes > MOST_AXES:
            raise ValueError(f"tensor {name!r} has {axes} axes")
        shape = tuple(self.number("Q") for _ in range(axes))
        self.take(12)  # how it is stored, and where
        return name, shape

    def _of_kind(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind != ARRAY:
            raise ValueError(f"a value is of kind {kind}, which GGUF does not have")
        inner, count = self.number("I"), self.number("Q")
        if inner in NUMBERS:
            size = struct.calcsize(f"<{NUMBERS[inner]}") * count
            self.check(size)
            return list(struct.unpack(f"<{count}{NUMBERS[inner]}", self.take(size)))
        if inner != STRING:
            raise ValueError("a list of lists is in its header")
        self.check(8 * count)
        return [self.text() for _ in range(count)]
