"""The weights of a decoder for accelerators: experts of a layer in one tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.weights import Read
from fastslow.engine.ops.paged import Matrix, PagedOps
from fastslow.engine.ops.precision import wide


@dataclass(frozen=True, slots=True)
class StackedMlp:
    """Gate and up in one matrix."""

    gate_up: Matrix
    down: Matrix


@dataclass(frozen=True, slots=True)
class StackedMoge:
    """router, scale: [E, H] and [E], float32. Experts: [E, H, 2F] and [E, F, H]."""

    router: Tensor
    scale: Tensor
    gate_up: Matrix
    down: Matrix
    shared: StackedMlp


@dataclass(frozen=True, slots=True)
class StackedLayer:
    """q, k and v in one matrix."""

    attention_norm: Tensor
    qkv: Matrix
    out: Matrix
    mlp_norm: Tensor
    mlp: StackedMlp | StackedMoge


class Stacked:
    """Weights of a config in `dtype` on `device`, read by the names of `names.tensor_shapes`.

    Raises:
        ValueError: the device's kernels cannot run the model; no weight is read then.
    """

    def __init__(
        self,
        config: ModelConfig,
        ops: PagedOps,
        dtype: torch.dtype,
        device: torch.device,
        read: Read,
    ) -> None:
        ops.check(config, dtype)
        self.config = config
        self.ops = ops
        self.dtype = dtype
        self.device = device
        self._read = read
        self.embedding = self._plain("model.embed_tokens.weight")
        self.layers = [self._layer(n) for n in range(config.layers)]
        self.norm = self._plain("model.norm.weight")
        tied = config.tie_word_embeddings
        self.head = Matrix(ops.place(self.embedding)) if tied else self._matrix("lm_head")
        del self._read

    def _plain(self, *names: str, dtype: torch.dtype | None = None) -> Tensor:
        """The named tensors below each other."""
        parts = [self._read(name) for name in names]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole.to(self.device, dtype or self.dtype)

    def _matrix(self, *names: str, bias: bool = False) -> Matrix:
        weight = self.ops.place(self._plain(*(f"{name}.weight" for name in names)))
        return Matrix(weight, self._plain(*(f"{name}.bias" for name in names)) if bias else None)

    def _layer(self, n: int) -> StackedLayer:
        prefix, bias = f"model.layers.{n}", self.config.attention_bias
        attention = f"{prefix}.self_attn"
        return StackedLayer(
            self._plain(f"{prefix}.input_layernorm.weight"),
            self._matrix(*(f"{attention}.{x}_proj" for x in "qkv"), bias=bias),
            self._matrix(f"{attention}.o_proj", bias=bias),
            self._plain(f"{prefix}.post_attention_layernorm.weight"),
            self._moge(f"{prefix}.mlp")
            if self.config.routed(n)
            else self._mlp(f"{prefix}.mlp", self.config.mlp_bias),
        )

    def _mlp(self, prefix: str, bias: bool = False) -> StackedMlp:
        return StackedMlp(
            self._matrix(f"{prefix}.gate_proj", f"{prefix}.up_proj", bias=bias),
            self._matrix(f"{prefix}.down_proj", bias=bias),
        )

    def _moge(self, prefix: str) -> StackedMoge:
        sums = wide(self.dtype)
        return StackedMoge(
            self._plain(f"{prefix}.gate.weight", dtype=sums),
            self._plain(f"{prefix}.router_scale", dtype=sums).flatten(),
            self._experts(prefix, "gate", "up"),
            self._experts(prefix, "down"),
            self._mlp(f"{prefix}.shared_expert"),
        )

    def _experts(self, prefix: str, *parts: str) -> Matrix:
        """Expert by expert into place, so that beside the finished ones one lies in memory."""
        whole: Tensor | None = None
        for e in range(self.config.experts):
            names = (f"{prefix}.experts.{e}.{part}_proj.weight" for part in parts)
            one_IO = self._plain(*names).T
            if whole is None:
                whole = one_IO.new_empty(self.config.experts, *one_IO.shape)
            whole[e].copy_(one_IO)
        assert whole is not None
        return Matrix(self.ops.place_experts(whole))
