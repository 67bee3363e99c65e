"""The recipe of a MoGE checkpoint: which neurons of the dense one go where, the router, trained deltas."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

TEMPERATURE = 16.0  # router logits are divided by it: a power of two, so bfloat16 loses nothing
NORMS = ("input_layernorm", "post_attention_layernorm")
NUMBERS = ("shared", "pools", "experts")  # tensors of a layout that hold neuron numbers


@dataclass(frozen=True)
class ExpertLayout:
    """Neurons of each dense FFN that the shared expert and the routed experts take.

    Attributes:
        shared: int64 [layers, shared], ascending neuron numbers of the dense FFN.
        pools: int64 [layers, groups, pool], the neurons that only a group's experts may take.
        experts: int64 [layers, groups, experts, width], positions in the group's pool, ascending.
        router: float32 [layers, groups * experts, hidden], before division by TEMPERATURE.
        scale: float32 [layers, groups * experts].
    """

    shared: Tensor
    pools: Tensor
    experts: Tensor
    router: Tensor
    scale: Tensor

    def order(self, layer: int) -> Tensor:
        """The dense FFN's neurons, shared first and then pool by pool."""
        return torch.cat((self.shared[layer], self.pools[layer].flatten()))


@dataclass(frozen=True)
class Recipe:
    """Turns one dense checkpoint into its MoGE checkpoint.

    layout: neurons of every expert, router and router scales. deltas: low-rank pairs by "<layer>_<linear>": a [rank,
    columns], b [rows, rank]; the rows of gate and up and the columns of down are in the layout's order. norms: norm
    weights by "<layer>_<norm>" and "norm".
    """

    layout: ExpertLayout
    deltas: dict[str, tuple[Tensor, Tensor]]
    norms: dict[str, Tensor]

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read the recipe of this package."""
        tensors = load_file(path)
        parts = {name: tensors[name].long() for name in NUMBERS}
        router, scale = tensors["router"].float(), tensors["scale"].float()
        layout = ExpertLayout(**parts, router=router, scale=scale)
        deltas, norms = {}, {}
        for name, tensor in tensors.items():
            kind, _, key = name.partition(".")
            if kind == "norm":
                norms[key] = tensor.float()
            elif kind == "delta" and key.endswith(".a"):
                b = tensors[f"{name.removesuffix('.a')}.b"]
                deltas[key.removesuffix(".a")] = (tensor.float(), b.float())
        return cls(layout, deltas, norms)
