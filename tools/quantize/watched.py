"""A decoder layer of the engine on plain torch, whose every matrix product can be watched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.backends.torch.weights import LayerModule
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.router import GroupRouter
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.norms import LayerNorms, RmsNorm
from fastslow.engine.model.ops import Linear, Ops, QuantLinear
from fastslow.engine.model.parts import Step, WeightReader
from fastslow.engine.model.shape import Layer
from fastslow.engine.rows import Rows
from fastslow.tools.forward import chain

ROUTER = "mlp.gate"
PREFIX = "layer."  # before all names while a layer is loaded
CPU = torch.device("cpu")
Tensors = dict[str, Tensor]  # of a layer, names without "model.layers.N."
Watch = Callable[
    [str, Tensor], None
]  # a matrix ("self_attn.q_proj"), and the rows [N, I] that it reads


def is_known(layer: Layer) -> bool:
    """Tell whether smoothing knows all matrices that a layer has, and what makes their inputs."""
    m, ffn, norms = layer.mixer, layer.ffn, layer.norms
    if not isinstance(m, GroupedAttention) or norms != LayerNorms(RmsNorm(norms.kind.eps)):
        return False
    if layer != Layer(m, ffn, norms):
        return False
    rope = m.rope and replace(m.rope, width=0, layout="halves-first")
    known = GroupedAttention(m.heads, m.kv_heads, m.head_dim, rope)
    mlps = [ffn] if isinstance(ffn, DenseMlp) else []
    if isinstance(ffn, RoutedExperts) and isinstance(ffn.router, GroupRouter):
        mlps = [ffn.expert, *filter(None, [ffn.shared])]
    biased = replace(known, qkv_bias=m.qkv_bias, out_bias=m.out_bias)
    return m == biased and bool(mlps) and all(mlp.activation == "silu" for mlp in mlps)


class WatchedOps(Ops):
    """Products of whole batches; rows are as many as there are. names: of the parts of each matrix, by its weight's id;
    the router's is not among them."""

    rows = 1

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.names: dict[int, Sequence[str]] = {}

    def _product(self, x_TI: Tensor, matrix: Linear) -> Tensor:
        for name in self.names.get(id(matrix.weight), [ROUTER]):
            self.watch(name, x_TI)
        if matrix.scale is not None:
            return super()._product(x_TI, matrix)
        return F.linear(x_TI, matrix.weight, matrix.bias)


class NamedReader(WeightReader):
    """Says which parts a matrix has."""

    ops: WatchedOps

    def matrix(self, *names: str, bias: bool = False) -> Linear:
        made = super().matrix(*names, bias=bias)
        self.ops.names[id(made.weight)] = [name.removeprefix(PREFIX) for name in names]
        return made


@dataclass(frozen=True)
class WatchedLayer:
    """Layer `n` of a model. Rows of texts lie one after the other, [N, H]; `lengths` says how many each text has."""

    config: ModelConfig
    n: int
    lengths: Sequence[int]

    def __call__(
        self,
        x_NH: Tensor,
        tensors: Tensors,
        watch: Watch = lambda *_: None,
        matrices: Mapping[str, QuantLinear] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The layer's output [N, H], and the keys and values [2, N, kv_heads * D] that it keeps. tensors: float32.
        matrices: those that run in int8, inputs too."""
        table = {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}
        int8 = {f"{PREFIX}{name}.weight": own for name, own in (matrices or {}).items()}
        ops = WatchedOps(watch)
        reader = NamedReader(ops, torch.float32, CPU, table.__getitem__, int8.get)
        layer = LayerModule.load(self.config.layers[self.n], PREFIX[:-1], reader)
        ends = np.cumsum(self.lengths)
        rows = Rows.of(
            [
                chain([0] * size, np.arange(end - size, end), 0, size)
                for size, end in zip(self.lengths, ends)
            ]
        )
        kv = KVStorage(self.config.state_layout, len(x_NH), torch.float32, CPU)
        step = Step(rows, len(x_NH), ops, torch.float32, CPU)
        out_NH = layer(x_NH, kv, self.n, step, rows.groups)
        return out_NH, torch.stack((kv.k[self.n], kv.v[self.n])).flatten(2)
