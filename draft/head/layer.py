"""The arithmetic of a draft head's layer, in training and in drafting alike, and its matrices in int8."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from loguru import logger
from torch import Tensor

from fastslow.draft.head.config import HeadConfig

STEPS = 127  # of int8, which stand for the largest weight of a row
MIDDLE = 128  # of uint8, which stands for 0
MIDDLE_OF_7_BITS = 64
TINY = 1e-12
OPS = torch.ops.onednn


class Int8Matrix(NamedTuple):
    """A matrix [n, m] in int8, in oneDNN's own order."""

    weight: Tensor
    scale: Tensor  # f32 [n]
    zero: Tensor  # int32 [n]


def linear_for(matrices: Mapping[str, Tensor]) -> Callable[[str, Tensor], Tensor]:
    """(name, x f32 [..., m]) -> f32 [..., n], from matrices [n, m] in any float dtype, run in int8 where
    this torch has int8 products."""
    if not (torch._C._has_mkldnn and hasattr(OPS, "qlinear_pointwise")):
        logger.info("the draft head runs in float32: this torch has no int8 products")
        plain = {name: matrix.float() for name, matrix in matrices.items()}
        return lambda name, x: F.linear(x, plain[name])
    packed = {name: _pack(matrix.float()) for name, matrix in matrices.items()}
    middle = MIDDLE_OF_7_BITS if overflows() else MIDDLE

    def product(name: str, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        size = rows.abs().amax(-1, keepdim=True).clamp_min_(TINY)
        levels = (rows * ((middle - 1) / size)).round_().add_(middle).to(torch.uint8)
        out = _multiply(levels, 1 / (middle - 1), middle, packed[name])
        return out.mul_(size).view(*x.shape[:-1], -1)

    return product


@cache
def overflows() -> bool:
    """Whether these products add pairs in 16 bits, which two large inputs overflow: oneDNN does so on
    chips without dot products of bytes (its documentation: "Nuances of int8 computations")."""
    largest = torch.full((1, 64), 255, dtype=torch.uint8)
    out = _multiply(largest, 1.0, MIDDLE, _pack(torch.ones(16, 64)))
    found = abs(float(out[0, 0]) - 64 * (255 - MIDDLE)) > 1
    if found:
        logger.info("the draft head takes inputs of 7 bits: int8 products overflow on this chip")
    return found


def _multiply(levels: Tensor, step: float, middle: int, m: Int8Matrix) -> Tensor:
    """Inputs `step` * (levels - middle), uint8 [t, m], times a matrix: f32 [t, n]."""
    out: Tensor = OPS.qlinear_pointwise(
        levels, step, middle, m.weight, m.scale, m.zero,
        None, 1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    return out


def _pack(matrix: Tensor) -> Int8Matrix:
    scale = matrix.abs().amax(-1).clamp_min(TINY) / STEPS
    levels = (matrix / scale[:, None]).round().to(torch.int8)
    return Int8Matrix(
        OPS.qlinear_prepack(levels, None), scale, torch.zeros(len(matrix), dtype=torch.int32)
    )


Linear = Callable[[str, Tensor], Tensor]
"""(name of a matrix [n, m], x [..., m]) -> x @ matrix.T [..., n]."""


class HeadLayer:
    """One step of the head; attention itself is the caller's.

    Args:
        config: its shape.
        norms: name -> weight [H], the names of `config.NORMS`.
        linear: applies the matrices of `config.MATRICES`, and "head": [D, H] of the draft
            vocabulary.
    """

    def __init__(self, config: HeadConfig, norms: Mapping[str, Tensor], linear: Linear) -> None:
        self.config = config
        self._norms = norms
        self._linear = linear

    def fuse(self, features: Tensor) -> Tensor:
        """Hidden states [..., H] from features [..., F]; the features of each layer are normed first."""
        sizes = features.view(*features.shape[:-1], -1, self.config.hidden)
        level = F.rms_norm(sizes, (self.config.hidden,), eps=self.config.eps)
        return self._linear("fuse", level.flatten(-2))

    def input(self, embedded: Tensor, hidden: Tensor) -> Tensor:
        """The layer's input [..., H], from a token's embedding and the hidden state before it."""
        pair = (self._norm("embedding_norm", embedded), self._norm("hidden_norm", hidden))
        return self._linear("entry", torch.cat(pair, -1))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [..., heads, head_dim], keys and values [..., kv_heads, head_dim]."""
        c = self.config
        mixed = self._linear("qkv", self._norm("attention_norm", x))
        mixed = mixed.view(*mixed.shape[:-1], -1, c.head_dim)
        q, k, v = torch.split(mixed, [c.heads, c.kv_heads, c.kv_heads], -2)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def output(self, x: Tensor, attended: Tensor) -> Tensor:
        """The layer's output [..., H], the next step's hidden state, from its input and what attention
        gave."""
        x = x + self._linear("out", attended)
        gate, up = self._linear("gate_up", self._norm("mlp_norm", x)).chunk(2, -1)
        return x + self._linear("down", F.silu(gate) * up)

    def final_norm(self, hidden: Tensor) -> Tensor:
        """[..., H], normed as the rows of the vocabulary's head need it."""
        return self._norm("norm", hidden)

    def logits(self, normed: Tensor) -> Tensor:
        """[..., D] from what `final_norm` gave."""
        return self._linear("head", normed)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.rms_norm(x, (self.config.hidden,), self._norms[name], self.config.eps)


def rotation(config: HeadConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin f32 [..., 1, head_dim / 2] for positions [...]."""
    powers = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    angles = positions.double()[..., None] * config.rope_theta**-powers
    return angles.cos().float()[..., None, :], angles.sin().float()[..., None, :]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864), first and second half of a head as pairs."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
