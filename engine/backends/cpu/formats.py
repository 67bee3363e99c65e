"""Weight formats of the CPU kernels, and which a request for one means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

import torch
from loguru import logger

QUANTIZATIONS = ("int8", "int4")
EMBEDDING = "model.embed_tokens.weight"


class Format(IntEnum):
    """How a matrix is packed; the numbers are those of kernels/format.h."""

    FLOAT32 = 0
    BFLOAT16 = 1
    INT8 = 2  # a scale per output; activations in int8, a scale per 32
    INT4 = 3  # groups of 32 inputs with a scale and a minimum, as in Q4_1; activations as INT8
    # The numbers of a GGUF file as they are; activations as INT8.
    Q4_0 = 4
    Q5_0 = 5
    Q8_0 = 6
    Q4_K = 7
    Q5_K = 8
    Q6_K = 9
    MXFP4 = 10
    FLOAT16 = 11  # of weights; activations in float32


# GGUF's types that run as they are.
GGUF_FORMATS = {
    "F32": Format.FLOAT32,
    "F16": Format.FLOAT16,
    "BF16": Format.BFLOAT16,
    "Q4_1": Format.INT4,
    **{form.name: form for form in Format if Format.Q4_0 <= form <= Format.MXFP4},
}


def float_format(dtype: torch.dtype) -> Format:
    """Of float32 or bfloat16."""
    return Format.FLOAT32 if dtype == torch.float32 else Format.BFLOAT16


@dataclass(frozen=True, slots=True)
class Formats:
    """What a model is packed in. Norms, biases and the router stay float32 in all of them.

    kv: of keys and values, which is also the dtype that the model shows. kept: names of matrices
    that the checkpoint itself has in int8, and that are packed as they are. types: formats of the
    matrices of a GGUF file, by name. tiles: that of the embedding where it is read from tiles, which are
    the head's where it is tied; None where its rows are plain numbers.
    """

    name: str
    layers: Format
    head: Format
    embedding: torch.dtype
    kv: torch.dtype
    kept: frozenset[str] = frozenset()
    types: Mapping[str, Format] = field(default_factory=dict, hash=False)
    tiles: Format | None = None

    def matrix(self, names: Sequence[str]) -> Format:
        """Of matrices below each other: a checkpoint's own only where all of them have it.

        Those of a file that are unlike each other are taken to float32, which has all their numbers.
        """
        if self.types:
            found = {self.types.get(name, self.layers) for name in names}
            if len(found) > 1:
                logger.info("{} are of unlike types: they run in float32", " and ".join(names))
            return found.pop() if len(found) == 1 else Format.FLOAT32
        return Format.INT8 if self.kept.issuperset(names) else self.layers

    def apart(self, names: Sequence[str]) -> bool:
        """Whether matrices below each other are unlike."""
        return len({self.matrix((name,)) for name in names}) > 1

    def alike(self, prefixes: Iterable[str]) -> Formats:
        """The same with all gates, ups and downs below the prefixes in one format.

        The experts of a layer lie in a row, all at one distance.
        """
        parts = ("gate", "up", "down")
        names = {f"{prefix}.{part}_proj.weight" for prefix in prefixes for part in parts}
        return self if names <= self.kept else replace(self, kept=self.kept - names)

    @property
    def screens(self) -> bool:
        """Whether the head has an int8 copy, read first where only the best token is wanted.

        A file's head runs as it is, with no copy.
        """
        return self.head is Format.BFLOAT16 and not self.types

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
        tiles = Format.INT8 if EMBEDDING in own else None
        return cls(f"w8a8-{plain.name}", plain.layers, form, dtype, dtype, own, tiles=tiles)

    @classmethod
    def of_file(cls, types: Mapping[str, Format], dtype: torch.dtype, head: str) -> Formats:
        """For a GGUF file whose matrices have these formats; any other is in dtype.

        head: the name of the head's matrix; the embedding's where they are tied, which is then read from
        the head's tiles.
        """
        plain = cls.of(dtype, "none")
        own = types.get(EMBEDDING, plain.layers)
        rows = own in (Format.FLOAT32, Format.BFLOAT16) and head != EMBEDDING
        embedding = torch.float32 if own is Format.FLOAT32 else torch.bfloat16
        form = types.get(head, plain.head)
        tiles = None if rows else own
        name = f"gguf-{plain.name}"
        return cls(name, plain.layers, form, embedding, dtype, types=dict(types), tiles=tiles)
