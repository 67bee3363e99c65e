"""Operations that a model needs of a device, which backends implement; and matrices in int8 with a scale per output,
rows with a scale per token, and their products in torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """float64 for a float64 model, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), on the CPU of functions that round alike everywhere."""
    return x.sigmoid() if x.device.type != "cpu" else x.neg().exp_().add_(1).reciprocal_()


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap) in the dtype of x, of functions that round alike everywhere; x itself for 0."""
    if not cap:
        return x
    return x.mul(2 / cap).exp_().add_(1).reciprocal_().mul_(-2).add_(1).mul_(cap)


@dataclass(frozen=True, slots=True)
class ClampedSwiglu:
    """gate * sigmoid(alpha * gate) * (up + 1), with gate at most `limit` and up within +-`limit`."""

    alpha: float = 1.702
    limit: float = 7.0


ACTIVATIONS = "silu", "gelu_tanh"  # as kernels/model.h numbers them
Activation = Literal["silu", "gelu_tanh"] | ClampedSwiglu
"""The inner rows of an MLP from gate and up: silu(gate) * up, gelu(gate) * up by tanh, or a clamped SwiGLU."""


LARGEST = 127
TINY = 1e-36  # below it a scale's inverse overflows: such a row is zeros


@dataclass(frozen=True, slots=True)
class QuantLinear:
    """y = (x @ weight.T) * scale: int8 [O, I] and float32 [O]."""

    weight_OI: Tensor
    scale_O: Tensor

    @classmethod
    def of(cls, weight_OI: Tensor) -> Self:
        """Round a float matrix: symmetric, the largest number of each row becomes 127.

        Scales are numbers that bfloat16 holds, so that files can store them in two bytes."""
        weight = weight_OI.float()
        scale = (weight.abs().amax(-1) / LARGEST).bfloat16().float()
        inverse = torch.where(scale > TINY, 1 / scale, 0.0)
        rounded = (weight * inverse[:, None]).round_().clamp_(-LARGEST, LARGEST)
        return cls(rounded.to(torch.int8), scale)

    @classmethod
    def stack(cls, parts: Sequence[Self]) -> Self:
        """The outputs of several matrices below each other, bit for bit."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            torch.cat([part.weight_OI for part in parts]), torch.cat([p.scale_O for p in parts])
        )

    def dequantised(self) -> Tensor:
        """float32 [O, I]."""
        return self.weight_OI.float() * self.scale_O[:, None]


Read = Callable[[str], Tensor]
ReadQuant = Callable[[str], QuantLinear | None]


def no_int8(name: str) -> QuantLinear | None:
    """For checkpoints that hold floats only."""
    return None


def quantise_tokens(x_TI: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [T, I] and float32 [T]: each row by its largest number, rounded to nearest even.

    A row that is not finite is zeros with a scale that is not finite, so all that comes of it shows."""
    x = x_TI.float()
    most = x.abs().amax(-1)
    scale = torch.where(most > TINY, most / LARGEST, torch.where(most <= TINY, 0.0, most))
    inverse = torch.where((most > TINY) & most.isfinite(), LARGEST / most, 0.0)
    rounded = (x * inverse[:, None]).nan_to_num(0.0, 0.0, 0.0).round_()
    return rounded.to(torch.int8), scale


def int8_product(x_TI: Tensor, matrix: QuantLinear, bias_O: Tensor | None) -> Tensor:
    """x @ weight.T + bias, [T, O], in the dtype of x, which is taken in int8 per token."""
    rows, steps = quantise_tokens(x_TI)
    if x_TI.device.type == "cpu":
        whole = torch._int_mm(rows, matrix.weight_OI.T)
    else:  # float64 holds such sums exactly
        whole = F.linear(rows.double(), matrix.weight_OI.double())
    sums = whole.float() * steps[:, None] * matrix.scale_O
    if bias_O is not None:
        sums += bias_O.float()
    return sums.to(x_TI.dtype)


@dataclass(frozen=True, slots=True)
class Sinks:
    """Keys and values that every row of a layer sees before its text.

    k, v: [kv_heads, S, D], S a multiple of the attention block. bias: [1, 1, S / block, 1, block], 0 for a
    sink and -inf for padding."""

    k: Tensor
    v: Tensor
    bias: Tensor

    @classmethod
    def of(cls, k_NKD: Tensor, v_NKD: Tensor, block: int) -> Sinks:
        """From N sinks, padded to whole blocks."""
        count = len(k_NKD)
        size = count + -count % block
        k, v = (F.pad(x.transpose(0, 1), (0, 0, 0, size - count)) for x in (k_NKD, v_NKD))
        bias = torch.zeros(size, dtype=wide(k.dtype), device=k.device)
        bias[count:] = -torch.inf
        return cls(k.contiguous(), v.contiguous(), bias.view(1, 1, -1, 1, block))


@dataclass(frozen=True, slots=True)
class RowFront:
    """What every row of a layer sees before its own keys. sink_logits: [heads] in the dtype of scores, without a value.
    score_cap: of all scores, see `GroupedAttention`."""

    sinks: Sinks | None = None
    sink_logits: Tensor | None = None
    score_cap: float = 0.0


NO_FRONT = RowFront()


class Keys(NamedTuple):
    """KV slots that L lines of attention read.

    slots: a slice where L is 1 and the slots are one run, else int64 [L * S], S a multiple of the attention
    block. bias: [L, 1, blocks, P * G, block], 0 where a row sees the key and -inf where it does not; every
    row sees at least one. P rows of a line, G query heads per KV head."""

    slots: slice | Tensor
    bias: Tensor


class Linear(NamedTuple):
    """A matrix in a backend's own form, its bias [O], and where it is int8 the scale of each output, float32 [O]. On
    accelerators also of all routed experts, with an axis of these in front."""

    weight: Tensor
    bias: Tensor | None = None
    scale: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Order of rows in a grouped product: the run (expert, start, stop) owns those sorted rows.

    rows: int64 [R], the input row that each sorted row copies. Starts and stops are multiples of `Ops.rows`."""

    rows: Tensor
    runs: Sequence[tuple[int, int, int]]


class Ops(Protocol):
    """The building blocks; `engine.backends.torch.reference` describes each. Letters: T rows, I in, O out.

    A row's bits never depend on the rows beside it."""

    rows: int
    """Matrix products see row counts that are multiples of this."""

    block: int
    """Keys per attention block; one fixed number, since partial sums depend on it."""

    def pack(self, weight_OI: Tensor) -> Tensor:
        """The form of a weight that `linear` wants, in new memory or the same tensor."""

    def linear(
        self,
        x_TI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None = None,
        scale_O: Tensor | None = None,
    ) -> Tensor: ...

    def of_heads(self, x_TNI: Tensor, matrices: Any) -> Tensor:
        """[T, N, O] of the rows of N heads, each by its own matrix, as `WeightReader.heads` gave them."""

    def rms_norm(self, x_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor: ...

    def gated(self, gate_up_T2F: Tensor, activation: Activation) -> Tensor: ...

    def rotate(self, x_TND: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor: ...

    def attend(
        self, q_LPHD: Tensor, k_SKD: Tensor, v_SKD: Tensor, keys: Keys, front: RowFront = NO_FRONT
    ) -> Tensor: ...

    def experts(
        self,
        x_TH: Tensor,
        gate_up: Sequence[Linear],
        down: Sequence[Linear],
        activation: Activation,
        dispatch: Dispatch,
    ) -> Tensor: ...
