"""Weight formats of the CPU kernels, and which a request for one means."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch

QUANTIZATIONS = ("int8", "int4")


class Format(IntEnum):
    """How a matrix is packed; the numbers are those of kernels/format.h."""

    FLOAT32 = 0
    BFLOAT16 = 1
    INT8 = 2  # a scale per output; activations in int8, a scale per 32
    INT4 = 3  # groups of 32 inputs with a scale and a minimum, as in Q4_1; activations as INT8


@dataclass(frozen=True, slots=True)
class Formats:
    """What a model is packed in. Norms, biases and the router stay float32 in all of them.

    kv: of keys and values, which is also the dtype that the model shows.
    """

    name: str
    layers: Format
    head: Format
    embedding: torch.dtype
    kv: torch.dtype

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
            form = Format.FLOAT32 if dtype == torch.float32 else Format.BFLOAT16
            return cls(str(dtype).removeprefix("torch."), form, form, dtype, dtype)
        layers = Format.INT8 if quantization == "int8" else Format.INT4
        return cls(quantization, layers, Format.INT8, torch.bfloat16, torch.bfloat16)
