"""What a tensor in a file may look like."""

from __future__ import annotations

from dataclasses import dataclass

FLOATS = ("BF16", "F16", "F32", "F64")  # as safetensors spells them


@dataclass(frozen=True, slots=True)
class Expected:
    """One tensor: the shapes and dtypes it may have, and whether it may be missing."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...] = FLOATS
    optional: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The usual one."""
        return self.shapes[0]
