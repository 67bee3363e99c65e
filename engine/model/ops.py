"""Operations of a model in plain torch, which backends make quicker; and matrices in int8 with a scale per output,
rows with a scale per token, and their products in torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

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


DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
)  # of products that libraries compute on the CPU
GELU_SCALE, GELU_CUBE = 1.5957691216057308, 0.044715  # 2 * sqrt(2 / pi)
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


class Ops:
    """The building blocks in plain torch, for any device and dtype: a row's bits never depend on the rows beside it.
    Letters: T rows, I in, O out.

    Three rules make it so. Matrix products see row counts that are multiples of `rows`, since
    libraries switch to another kernel, and another rounding, for fewer. Sums over keys run inside
    blocks of one fixed size and then block by block, so that keys a row does not see add exact
    zeros. Elementwise functions whose rounding differs at the end of a vector are made
    of functions that round alike everywhere. Plain products hold to this for sizes that are
    multiples of 16, as those of real models are; odd ones were seen to differ in the last bit.
    """

    rows = 4
    """Matrix products see row counts that are multiples of this."""
    block = 128
    """Keys per attention block; one fixed number, since partial sums depend on it."""
    at_once = 16  # rows of one product that MKL or oneDNN computes

    def pack(self, weight_OI: Tensor) -> Tensor:
        """The form of a weight that `linear` wants, in new memory or the same tensor."""
        return weight_OI

    def linear(
        self,
        x_TI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None = None,
        scale_O: Tensor | None = None,
    ) -> Tensor:
        """x @ weight.T + bias, [T, O], in the dtype of x; the weight as `pack` gave it, or in int8 with its scales."""
        count = x_TI.shape[0]
        if missing := -count % self.rows:
            x_TI = F.pad(x_TI, (0, 0, 0, missing))
        return self._product(x_TI, Linear(weight_OI, bias_O, scale_O))[:count]

    def _product(self, x_TI: Tensor, matrix: Linear) -> Tensor:
        weight_OI, bias_O, scale_O = matrix
        if scale_O is not None:
            return int8_product(x_TI, QuantLinear(weight_OI, scale_O), bias_O)
        if x_TI.device.type != "cpu" or x_TI.dtype not in DTYPES:
            return F.linear(x_TI, weight_OI, bias_O)
        return self._in_parts(x_TI, lambda part: F.linear(part, weight_OI, bias_O))

    def _in_parts(self, x_TI: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        """On Intel's chips MKL and oneDNN order sums by the number of rows: every product has the same number."""
        count = x_TI.shape[0]
        parts = F.pad(x_TI, (0, 0, 0, -count % self.at_once)).split(self.at_once)
        return torch.cat([product(part) for part in parts])[:count]

    def rms_norm(self, x_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps), rounded to the dtype of x, then times weight.

        Computed in float32 (float64 for float64). Zhang and Sennrich, arXiv 1910.07467.
        """
        x = x_TH.to(wide(x_TH.dtype))
        scale = (x * x).mean(-1, keepdim=True).add_(eps).rsqrt_()
        return (x * scale).to(x_TH.dtype).mul_(weight_H)

    def gated(self, gate_up_T2F: Tensor, activation: Activation) -> Tensor:
        """act(gate) * up for [T, 2F] = (gate | up), giving [T, F] in the same dtype.

        Computed in float32 (float64 for float64) and rounded once. gelu by tanh is
        x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 x^3)).
        """
        gate, up = gate_up_T2F.to(wide(gate_up_T2F.dtype)).chunk(2, -1)
        if isinstance(activation, ClampedSwiglu):
            limit = activation.limit
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit) + 1
            inner = gate.mul(-activation.alpha)
        elif activation == "gelu_tanh":
            inner = (gate * gate).mul_(GELU_CUBE).add_(1).mul_(gate).mul_(-GELU_SCALE)
        elif activation == "silu":
            inner = gate.neg()
        else:
            raise ValueError(f"activation={activation!r} does not run in plain torch")
        return inner.exp_().add_(1).reciprocal_().mul_(gate).mul_(up).to(gate_up_T2F.dtype)

    def rotate(self, x_TND: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
        """Half-split rotary embedding; the sines come with their first half negated."""
        return (x_TND * cos_T1D).add_(x_TND.roll(x_TND.shape[-1] // 2, -1).mul_(sin_T1D))

    def of_heads(self, x_TNI: Tensor, matrices: Any) -> Tensor:
        """[T, N, O] of the rows of N heads, each by its own matrix, as `WeightReader.heads` gave them."""
        each = zip(x_TNI.unbind(1), matrices, strict=True)
        return torch.stack([self.linear(x.contiguous(), *matrix) for x, matrix in each], 1)

    def attend(
        self, q_LPHD: Tensor, k_SKD: Tensor, v_SKD: Tensor, keys: Keys, front: RowFront = NO_FRONT
    ) -> Tensor:
        """Softmax attention of L lines of P rows, each line over its own keys: [L, P, H * width of values].

        q is float32 (float64 for float64) and already scaled; k and v are a layer's whole cache,
        [slots, kv_heads, width] in the model's dtype. P is a multiple of `rows`.
        """
        lines, rows, heads, dim = q_LPHD.shape
        kv_heads, width = v_SKD.shape[1:]
        group = rows * (heads // kv_heads)
        bias = keys.bias
        k = self._gather(k_SKD, keys.slots, lines, bias.shape[2], q_LPHD.dtype)
        v = self._gather(v_SKD, keys.slots, lines, bias.shape[2], q_LPHD.dtype)
        if (first := front.sinks) is not None:
            k, v = _after_sinks(first.k, k), _after_sinks(first.v, v)
            before = first.bias.expand(lines, -1, -1, group, -1)
            bias = torch.cat((before, bias.expand(lines, -1, -1, -1, -1)), 2)
        blocks = bias.shape[2]
        k, v = k.view(-1, self.block, dim), v.view(-1, self.block, width)
        q = q_LPHD.view(lines, rows, kv_heads, -1, dim).transpose(1, 2)
        q = q.reshape(lines, kv_heads, 1, group, dim).expand(-1, -1, blocks, -1, -1)
        scores = torch.bmm(q.reshape(-1, group, dim), k.transpose(1, 2))
        scores = soft_cap(scores, front.score_cap)
        scores = scores.view(lines, kv_heads, blocks, group, self.block).add_(bias)
        top = scores.amax((2, 4), keepdim=True)
        if front.sink_logits is not None:
            sinks = front.sink_logits.view(kv_heads, 1, -1).expand(-1, rows, -1)
            sinks = sinks.reshape(1, kv_heads, 1, group, 1)
            top = torch.maximum(top, sinks)
        mass = scores.sub_(top).exp_()
        totals = mass.sum(-1, keepdim=True)
        parts = torch.bmm(mass.view(-1, group, self.block), v)
        parts = parts.view(lines, kv_heads, blocks, group, width)
        out, total = parts[:, :, 0], totals[:, :, 0]
        for i in range(1, blocks):
            out += parts[:, :, i]
            total += totals[:, :, i]
        if front.sink_logits is not None:
            total = total + (sinks - top).exp_()[:, :, 0]
        out = (out / total).view(lines, kv_heads, rows, -1, width)
        return out.transpose(1, 2).reshape(lines, rows, heads * width)

    def _gather(
        self, cache_SKD: Tensor, slots: slice | Tensor, lines: int, blocks: int, dtype: torch.dtype
    ) -> Tensor:
        """The lines' keys or values, [lines, kv_heads, blocks * block, D]."""
        _, kv_heads, dim = cache_SKD.shape
        size = blocks * self.block
        out = cache_SKD.new_empty(lines, kv_heads, size, dim, dtype=dtype)
        if isinstance(slots, slice):
            run = cache_SKD[slots].transpose(0, 1)
            out[0, :, : run.shape[1]].copy_(run)
            out[0, :, run.shape[1] :].zero_()
        else:
            picked = cache_SKD.index_select(0, slots).view(lines, size, kv_heads, dim)
            out.copy_(picked.transpose(1, 2))
        return out

    def experts(
        self,
        x_TH: Tensor,
        gate_up: Sequence[Linear],
        down: Sequence[Linear],
        activation: Activation,
        dispatch: Dispatch,
    ) -> Tensor:
        """Every sorted row through its own expert's gated MLP: [R, H], in the dtype of x."""
        x_RH = x_TH.index_select(0, dispatch.rows)
        h_RF = self.gated(self._grouped(x_RH, gate_up, dispatch), activation)
        return self._grouped(h_RF, down, dispatch)

    def _grouped(self, x_RI: Tensor, matrices: Sequence[Linear], dispatch: Dispatch) -> Tensor:
        return torch.cat([self._product(x_RI[i:j], matrices[e]) for e, i, j in dispatch.runs])


def _after_sinks(sinks_KFD: Tensor, own_LKSD: Tensor) -> Tensor:
    """[L, kv_heads, F + S, D]: the sinks, and then each line's own."""
    return torch.cat((sinks_KFD.to(own_LKSD.dtype).expand(len(own_LKSD), -1, -1, -1), own_LKSD), 2)
