"""Weight formats of the CPU kernels, and which a request for one means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum

import torch

QUANTIZATIONS = ("int8", "int4")
EMBEDDING = "model.embed_tokens.weight"


class Format(IntEnum):
    """How a matrix is packed; the numbers are those of kernels/format.h."""

    FLOAT32 = 0
    BFLOAT16 = 1
    INT8 = 2  # a scale per output; activations in int8, a scale per 32
    INT4 = 3  # groups of 32 inputs with a scale and a minimum, as in Q4_1; activations as INT8


def float_format(dtype: torch.dtype) -> Format:
    """Of float32 or bfloat16."""
    return Format.FLOAT32 if dtype == torch.float32 else Format.BFLOAT16


@dataclass(frozen=True, slots=True)
class Formats:
    """What a model is packed in. Norms, biases and the router stay float32 in all of them.

    kv: of keys and values, which is also the dtype that the model shows. kept: names of matrices
    that the checkpoint itself has in int8, and that are packed as they are.
    """

    name: str
    layers: Format
    head: Format
    embedding: torch.dtype
    kv: torch.dtype
    kept: frozenset[str] = frozenset()

    def matrix(self, names: Iterable[str]) -> Format:
        """Of matrices below each other: a checkpoint's int8 only where all of them are."""
        return Format.INT8 if self.kept.issuperset(names) else self.layers

    def alike(self, prefixes: Iterable[str]) -> Formats:
        """The same with all gates, ups and downs below the prefixes in one format.

        The experts of a layer lie in a row, all at one distance.
        """
        parts = ("gate", "up", "down")
        names = {f"{prefix}.{part}_proj.weight" for prefix in prefixes for part in parts}
        return self if names <= self.kept else replace(self, kept=self.kept - names)

    @property
    def int8_embedding(self) -> bool:
        """Whether the embedding is read from int8 tiles; those of the head where it is tied."""
        return EMBEDDING in self.kept

    @property
    def screens(self) -> bool:
        """Whether the head has an int8 copy, read first where only the best token is wanted."""
        return self.head is Format.BFLOAT16

    @classmethod
    def of(cls, dtype: torch.dtype, quantization: str) -> Formats:
        """For a dtype (float32 or bfloat16) and "int8", "int4" or "none".

        A 4-bit model keeps its head in int8: it decides between near words.
        """
        if quantization == "none":
            form = float_format(dtype)
            return cls(str(dtype).removeprefix("torch."), form, form, dtype, dtype)
        layers = Format.INT8 if quantization == "int8" else Format.INT4
        return cls(quantization, layers, Format.INT8, torch.bfloat16, torch.bfloat16)

    @classmethod
    def w8a8(cls, dtype: torch.dtype, kept: Iterable[str], head: str) -> Formats:
        """For a checkpoint that has the matrices `kept` in int8; all else is in dtype.

        head: the name of the head's matrix.
        """
        plain = cls.of(dtype, "none")
        own = frozenset(kept)
        form = Format.INT8 if head in own else plain.head
        return cls(f"w8a8-{plain.name}", plain.layers, form, dtype, dtype, own)
