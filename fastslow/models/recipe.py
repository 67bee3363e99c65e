"""The recipe of a MoGE checkpoint: which neurons of the dense one go where, the router, trained deltas."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fastslow.engine.backends.alike import AlikeLayers
from fastslow.engine.model.config import ModelConfig
from fastslow.models.dense import LINEARS

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

    def check(self, inner: int) -> None:
        """ValueError unless shared and pools partition the `inner` neurons of every layer."""
        groups, experts, width = self.experts.shape[1:]
        for layer in range(self.shared.shape[0]):
            if not torch.equal(self.order(layer).sort().values, torch.arange(inner)):
                each = f"each of the {inner} neurons once"
                raise ValueError(f"layer {layer}: shared expert and pools must use {each}")
        pool = self.pools.shape[-1]
        if int(self.experts.min()) < 0 or int(self.experts.max()) >= pool:
            raise ValueError(f"expert neuron positions must be in 0..{pool - 1}")
        if width > 1 and bool((self.experts.diff(dim=-1) <= 0).any()):
            raise ValueError("expert neuron positions must be ascending, without repeats")
        if self.router.shape[1] != groups * experts:
            wanted = groups * experts
            raise ValueError(f"router must have {wanted} rows, got {self.router.shape[1]}")


@dataclass(frozen=True)
class Recipe:
    """Turns one dense checkpoint into its MoGE checkpoint.

    layout: neurons of every expert, router and router scales. deltas: low-rank pairs by "<layer>_<linear>": a [rank,
    columns], b [rows, rank]; the rows of gate and up and the columns of down are in the layout's order. Empty:
    weights stay. norms: replaced norm weights by "<layer>_<norm>" and "norm". Empty: norms stay.
    """

    layout: ExpertLayout
    deltas: dict[str, tuple[Tensor, Tensor]]
    norms: dict[str, Tensor]

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a recipe; ValueError for a file that is missing, truncated, or lacks a tensor."""
        if not path.is_file():
            raise ValueError(f"recipe file {path} must exist, and does not")
        try:
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
        except SafetensorError as error:
            raise ValueError(f"recipe file {path} must be complete safetensors: {error}") from error
        except KeyError as error:
            raise ValueError(f"recipe file {path} must hold tensor {error}") from error
        return cls(layout, deltas, norms)

    def check(self, config: ModelConfig) -> None:
        """ValueError unless the recipe is complete and fits a dense model of this shape."""
        layers, hidden = len(config.layers), config.hidden_size
        shape = (self.layout.shared.shape[0], self.layout.router.shape[2])
        if shape != (layers, hidden):
            raise ValueError(
                f"recipe must be for {layers} layers of {hidden}, got {shape[0]} of {shape[1]}"
            )
        self.layout.check(AlikeLayers.of(config).widest)
        for kind, found, names in (
            ("deltas", self.deltas.keys(), delta_names(layers)),
            ("norms", self.norms.keys(), norm_names(layers)),
        ):
            if found and (missing := set(names) - found):
                raise ValueError(f"recipe lacks {len(missing)} {kind}, such as {min(missing)}")


def delta_names(layers: int) -> list[str]:
    return [f"{i}_{name}" for i in range(layers) for name in LINEARS]


def norm_names(layers: int) -> list[str]:
    return [*(f"{i}_{name}" for i in range(layers) for name in NORMS), "norm"]
