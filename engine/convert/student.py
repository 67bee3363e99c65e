from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastslow.engine.convert.dense import Dense, attend
from fastslow.engine.convert.layout import Layout
from fastslow.engine.convert.masked import Gate, GatedProduct, LowRankLinear


class Student(torch.nn.Module):
    """The MoGE model in training: the dense FFN with a mask, frozen weights with low-rank deltas.

    Every expert is a subset of its group's neurons, so the MoGE output equals the dense FFN whose
    neuron n of group g is multiplied by weight_g * member[chosen expert of g, n], and whose shared
    neurons are multiplied by 1. That costs what the dense model costs. Low-rank deltas follow LoRA
    (Hu et al., arXiv 2106.09685).

    Args:
        dense: the frozen model; its weights are used and not copied except for the FFN,
            whose neurons are put in the layout's order.
        layout: neurons of the shared expert and of every expert, per layer.
        rank: rank of the deltas of q, k, v, o, gate, up, down.
    """

    def __init__(self, dense: Dense, layout: Layout, rank: int = 16) -> None:
        super().__init__()
        self.dense, self.config, self.layout, self.rank = dense, dense.config, layout, rank
        self.frozen: list[dict[str, Tensor]] = []
        self.params = torch.nn.ParameterDict()
        for layer in range(self.config.layers):
            order = layout.order(layer)
            weights = {name: dense.weight(layer, name) for name in "qkvo"}
            weights["gate"] = dense.weight(layer, "gate")[order].contiguous()
            weights["up"] = dense.weight(layer, "up")[order].contiguous()
            weights["down"] = dense.weight(layer, "down")[:, order].contiguous()
            self.frozen.append(weights)
            for name, weight in weights.items():
                rows, columns = weight.shape
                down = torch.randn(rank, columns) / columns**0.5
                self.params[f"{layer}_{name}_a"] = torch.nn.Parameter(down)
                self.params[f"{layer}_{name}_b"] = torch.nn.Parameter(torch.zeros(rows, rank))
            for name in ("input_layernorm", "post_attention_layernorm"):
                weight = dense.tensors[f"model.layers.{layer}.{name}.weight"].float().clone()
                self.params[f"{layer}_{name}"] = torch.nn.Parameter(weight)
        self.params["norm"] = torch.nn.Parameter(dense.tensors["model.norm.weight"].float().clone())
        self.gates = torch.nn.ModuleList(
            Gate(layout.router[layer], layout.scale[layer], layout.member(layer))
            for layer in range(self.config.layers)
        )

    def linear(self, x: Tensor, layer: int, name: str) -> Tensor:
        y: Tensor = LowRankLinear.apply(  # type: ignore[no-untyped-call]
            x,
            self.frozen[layer][name],
            self.params[f"{layer}_{name}_a"],
            self.params[f"{layer}_{name}_b"],
        )
        bias = self.dense.bias(layer, name)
        return y if bias is None else y + bias

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.params[name].to(x.dtype), self.config.eps)

    def forward(self, tokens_BT: Tensor, groups_BT: Tensor) -> Tensor:
        """Final normed hidden states [B, T, hidden].

        Args:
            tokens_BT: int64 token ids.
            groups_BT: int64, routed groups to run for each row, 0 to the number of groups.
        """
        x = self.dense.embedding[tokens_BT]
        dense = self.dense
        for layer in range(self.config.layers):
            y = self.norm(x, f"{layer}_input_layernorm")
            parts = [self.linear(y, layer, name) for name in "qkv"]
            mixed = attend(self.config, parts, dense.cos, dense.sin, layer, None)
            x = x + self.linear(mixed, layer, "o")
            y = self.norm(x, f"{layer}_post_attention_layernorm")
            mask = self.gates[layer](y, groups_BT)
            parts = [self.linear(y, layer, name) for name in ("gate", "up")]
            h: Tensor = GatedProduct.apply(*parts, mask)  # type: ignore[no-untyped-call]
            x = x + self.linear(h, layer, "down")
        return self.norm(x, "norm")
