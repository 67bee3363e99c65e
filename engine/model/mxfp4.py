"""MXFP4: 32 weights of 4 bits share a power of two.

Files of safetensors hold the weights 2i and 2i + 1 of a block in byte i; GGUF files hold i and i + 16
there, behind the exponent. OCP Microscaling Formats 1.0.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32
BIAS = 127  # of the exponent
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # and their negatives


def _codes(blocks: Tensor) -> Tensor:
    """uint8 [..., 32] from [..., 16]: the weights' codes in order."""
    return torch.stack((blocks & 15, blocks >> 4), -1).flatten(-2)


def dequantised(blocks_OG: Tensor, scales_OG: Tensor) -> Tensor:
    """float32 [O, 32 * G], exact, from uint8 [O, G, 16] and [O, G]."""
    table = torch.tensor([*VALUES, *(-value for value in VALUES)])
    exponents = scales_OG.to(torch.int32) - BIAS
    return torch.ldexp(table[_codes(blocks_OG).int()], exponents[..., None]).flatten(-2)


def gguf_rows(blocks_OG: Tensor, scales_OG: Tensor) -> Tensor:
    """uint8 [O, 17 * G]: the same numbers as blocks of a GGUF file, bit for bit."""
    codes = _codes(blocks_OG)
    halves = codes[..., : BLOCK // 2] | codes[..., BLOCK // 2 :] << 4
    return torch.cat((scales_OG[..., None], halves), -1).flatten(-2)
