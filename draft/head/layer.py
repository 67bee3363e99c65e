"""The arithmetic of a draft head's layer, in training and in drafting alike, and its matrices in int8."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


GROW = 64  # rows


class HeadKV:
    """Grows row by row; a draft's rows are dropped when the next rows are committed.

    Rows may be missing between others (a prompt that was never read): the head then knows less, and
    positions stay right.

    Attributes:
        position: of the next committed row, in the text.
    """

    def __init__(self, config: HeadConfig, position: int) -> None:
        self.position = position
        self._config = config
        self._ratio = config.heads // config.kv_heads
        self._scale = config.head_dim**-0.5
        self._kv = torch.empty(2, config.kv_heads, GROW, config.head_dim)
        self._committed = 0
        self._parents: list[int] = []  # of the draft's rows
        self._depths: list[int] = []

    def prepend(self, k_NKD: Tensor, v_NKD: Tensor) -> None:
        """Rows before the text that take no position in it; only before the first row of the text."""
        if not self._committed:
            self._write(0, k_NKD, v_NKD)
            self._committed = len(k_NKD)

    def draft_positions(self, parents: Sequence[int]) -> list[int]:
        """Positions of draft rows, from their parents' row numbers; -1 = the last committed row."""
        return [self.position + (0 if p < 0 else self._depths[p] + 1) for p in parents]

    def commit(self, k_NKD: Tensor, v_NKD: Tensor) -> None:
        """Append rows of the text."""
        self.drop_draft()
        self._write(self._committed, k_NKD, v_NKD)
        self._committed += len(k_NKD)
        self.position += len(k_NKD)

    def fork(self, drop: int) -> HeadKV:
        """A copy without the last `drop` committed rows."""
        copy = HeadKV(self._config, self.position - drop)
        copy._committed = max(0, self._committed - drop)
        copy._kv = self._kv[:, :, : max(copy._committed, GROW)].clone()
        return copy

    def skip(self, position: int) -> None:
        """The next committed row has this position; the rows between are missing."""
        self.drop_draft()
        self.position = position

    def drop_draft(self) -> None:
        """Remove the draft's rows."""
        self._parents.clear()
        self._depths.clear()

    def attend(self, q_QHD: Tensor) -> Tensor:
        """[Q, H * D] for queries of the last committed row."""
        return self._attend(q_QHD, self._committed, None)

    def draft(self, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, parents: Sequence[int]) -> Tensor:
        """Append rows of a draft, each after its parent, and attend: [N, H * D]."""
        before = len(self._parents)
        self._depths += [0 if p < 0 else self._depths[p] + 1 for p in parents]
        self._parents += parents
        self._write(self._committed + before, k_NKD, v_NKD)
        end = self._committed + len(self._parents)
        if len(parents) == 1 and self._parents == list(range(-1, len(self._parents) - 1)):
            return self._attend(q_NHD, end, None)  # a chain reads every row
        mask = torch.zeros(len(parents), len(self._parents), dtype=torch.bool)
        for row in range(len(parents)):
            at = before + row
            while at >= 0:
                mask[row, at] = True
                at = self._parents[at]
        return self._attend(q_NHD, end, mask)

    def _attend(self, q_QHD: Tensor, end: int, mask_QN: Tensor | None) -> Tensor:
        first = max(0, end - self._config.window)
        k_KSD, v_KSD = self._kv[:, :, first:end]
        count, heads, size = q_QHD.shape
        q = q_QHD.transpose(0, 1).reshape(-1, self._ratio * count, size)  # query heads by key head
        scores = (q @ k_KSD.transpose(1, 2)) * self._scale
        if mask_QN is not None:
            hidden = F.pad(~mask_QN, (max(0, self._committed - first), 0))[:, -(end - first) :]
            scores.masked_fill_(hidden.repeat(self._ratio, 1), -torch.inf)
        out: Tensor = torch.softmax(scores, -1) @ v_KSD
        return out.reshape(heads, count, size).transpose(0, 1).flatten(1)

    def _write(self, first: int, k_NKD: Tensor, v_NKD: Tensor) -> None:
        end = first + len(k_NKD)
        room = self._kv.shape[2]
        if end > room:
            self._kv = F.pad(self._kv, (0, 0, 0, max(room, end - room)))
        self._kv[0, :, first:end] = k_NKD.transpose(0, 1)
        self._kv[1, :, first:end] = v_NKD.transpose(0, 1)
