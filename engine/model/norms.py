"""Norms, and the residual stream that they stand in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.model.ops import Ops, wide
from fastslow.engine.model.tensor_spec import TensorSpec


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """x / sqrt(mean(x^2) + eps) * (weight + offset); offset is 1 where files hold weights less 1. Zhang and Sennrich,
    arXiv 1910.07467."""

    eps: float = 1e-6
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias. Ba et al., arXiv 1607.06450."""

    eps: float = 1e-5
    bias: bool = True


Norm = RmsNorm | LayerNorm
USUAL_NORM = RmsNorm()


@dataclass(frozen=True, slots=True)
class NormModule:
    """A norm with its weights, the offset added, in the dtype that its kernel wants; [size] each."""

    ops: Ops
    kind: Norm
    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x_TH: Tensor) -> Tensor:
        """Rows after the norm, in the dtype of x."""
        if isinstance(self.kind, RmsNorm):
            return self.ops.rms_norm(x_TH, self.weight, self.kind.eps)
        x = x_TH.to(wide(x_TH.dtype))
        weight, bias = (None if w is None else w.to(x.dtype) for w in (self.weight, self.bias))
        return F.layer_norm(x, x.shape[-1:], weight, bias, self.kind.eps).to(x_TH.dtype)


def norm_tensors(prefix: str, kind: Norm, size: int) -> Iterator[TensorSpec]:
    """The tensors of a norm of `size` numbers."""
    yield TensorSpec(f"{prefix}.weight", (size,))
    if isinstance(kind, LayerNorm) and kind.bias:
        yield TensorSpec(f"{prefix}.bias", (size,))


def plain_norm(x_TH: Tensor, eps: float, weight_H: Tensor | None = None) -> Tensor:
    """An RMSNorm by torch alone, which also learns: for draft heads, whose rows need not be the same among any."""
    return F.rms_norm(x_TH, x_TH.shape[-1:], weight_H, eps)


@dataclass(frozen=True, slots=True)
class LayerNorms:
    """Norms of a layer: of what its sublayers read (`before`), of what they add (`after`), of both, or none."""

    kind: Norm = USUAL_NORM
    before: bool = True
    after: bool = False

    @property
    def names(self) -> dict[str, str]:
        """Name in files of each norm, by use: of what the mixer or the ffn reads, and of what they add."""
        if not self.after:
            names = {"mixer": "input_layernorm", "ffn": "post_attention_layernorm"}
            return names if self.before else {}
        added = {
            "mixer_added": "post_attention_layernorm",
            "ffn_added": "post_feedforward_layernorm",
        }
        if not self.before:
            return added
        names = {"mixer": "input_layernorm", "ffn": "pre_feedforward_layernorm", **added}
        return {use: names[use] for use in ("mixer", "mixer_added", "ffn", "ffn_added")}


USUAL_NORMS = LayerNorms()
Sublayer = Callable[[Tensor], Tensor]


Connection = Callable[[Tensor, Sublayer], Tensor]


def one_stream(x_TH: Tensor, added: Sublayer) -> Tensor:
    """x + added(x)."""
    return x_TH + added(x_TH)


def residual(
    x_TH: Tensor,
    before: Sublayer,
    sublayer: Sublayer,
    after: Sublayer,
    scale: float = 1.0,
    connected: Connection = one_stream,
) -> Tensor:
    """x + scale * after(sublayer(before(x))): the one spelling of the residual stream, or of what stands for it."""

    def added(x_TH: Tensor) -> Tensor:
        found = after(sublayer(before(x_TH)))
        return found if scale == 1 else found * scale

    return connected(x_TH, added)


def same(x_TH: Tensor) -> Tensor:
    """Rows as they are, where there is no norm."""
    return x_TH
