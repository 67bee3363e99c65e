"""The dense model as the teacher, and the MoGE model as it is trained: dense weights under masks, with deltas of low
rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fastslow.engine.model.config import ModelConfig
from fastslow.models.dense import Dense
from fastslow.models.recipe import NORMS, TEMPERATURE, ExpertLayout, Recipe, delta_names, norm_names

POSITIONS = 8192  # of the longest row
SHARPNESS = 2.0  # of the soft choice that only the backward pass sees


def rotate(x_BHTD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    first, second = x_BHTD.chunk(2, -1)
    return x_BHTD * cos_TD + torch.cat((-second, first), -1) * sin_TD


def attend(config: ModelConfig, parts: list[Tensor], cos: Tensor, sin: Tensor) -> Tensor:
    """Causal grouped-query attention over projected q, k, v [B, T, heads * head_dim]."""
    q, k, v = (torch.unflatten(p, -1, (-1, config.head_dim)).transpose(1, 2) for p in parts)
    cos_TD, sin_TD = cos[: q.shape[2]].to(q.dtype), sin[: q.shape[2]].to(q.dtype)
    q, k = rotate(q, cos_TD, sin_TD), rotate(k, cos_TD, sin_TD)
    repeat = config.heads // config.kv_heads
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(1, 2).flatten(2)


class Teacher(Dense):
    """A frozen dense model that runs; see `Dense`."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__(folder, dtype)
        dim, theta = self.config.head_dim, self.config.rope_theta
        freq = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        angle = torch.outer(torch.arange(POSITIONS, dtype=torch.float32), freq)
        both = torch.cat((angle, angle), -1)
        self.cos, self.sin = both.cos(), both.sin()
        self.norms = {"norm": self.tensors["model.norm.weight"]}
        for layer, name in product(range(self.config.layers), NORMS):
            self.norms[f"{layer}_{name}"] = self.tensors[f"model.layers.{layer}.{name}.weight"]

    def linear(self, x: Tensor, layer: int, name: str) -> Tensor:
        return F.linear(x, self.weight(layer, name), self.bias(layer, name))

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.norms[name].to(x.dtype), self.config.rms_norm_eps)

    @torch.no_grad()
    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """Final normed hidden states [B, T, hidden] of int64 token ids."""
        return hidden_states(self, self, tokens_BT)


def hidden_states(
    model: Teacher | Student,
    dense: Teacher,
    tokens_BT: Tensor,
    mask: Callable[[int, Tensor], Tensor] | None = None,
) -> Tensor:
    """Final normed hidden states. mask: of a layer's last neurons, by what its MLP reads."""
    x = dense.embedding[tokens_BT]
    for layer in range(dense.config.layers):
        y = model.norm(x, f"{layer}_input_layernorm")
        parts = [model.linear(y, layer, name) for name in "qkv"]
        x = x + model.linear(attend(dense.config, parts, dense.cos, dense.sin), layer, "o")
        y = model.norm(x, f"{layer}_post_attention_layernorm")
        h = F.silu(model.linear(y, layer, "gate")) * model.linear(y, layer, "up")
        if mask is not None:
            own = mask(layer, y)
            h = h * F.pad(own, (h.shape[-1] - own.shape[-1], 0), value=1.0)
        x = x + model.linear(h, layer, "down")
    return model.norm(x, "norm")


class MaskedGate(torch.nn.Module):
    """Grouped router of one layer, as a mask over the pool neurons.

    The forward pass is the MoGE rule (Tang et al., arXiv 2505.21411): softmax over all experts in
    float32, the best expert of each group, its weight p * router_scale without renormalisation;
    of the groups only the `groups` with the largest weights run, ties to the lower group. The
    backward pass sees soft choices (straight-through, Bengio et al., arXiv 1308.3432).

    router: [groups * experts, hidden] float32, before division by TEMPERATURE. scale: [groups * experts] float32.
    member: [groups, experts, pool] 1.0 where the neuron belongs to the expert.
    """

    member: Tensor

    def __init__(self, router: Tensor, scale: Tensor, member: Tensor) -> None:
        super().__init__()
        self.router = torch.nn.Parameter(router.float().clone())
        self.log_scale = torch.nn.Parameter(scale.float().log())
        self.register_buffer("member", member.to(torch.bfloat16))

    def forward(self, x_BTH: Tensor, groups_BT: Tensor) -> Tensor:
        """Mask [B, T, groups * pool], in the dtype of `x_BTH`."""
        count, experts, _ = self.member.shape
        # the written router is bfloat16: round in training too, and pass the gradient through
        router = self.router + (self.router.bfloat16().float() - self.router).detach()
        score = F.linear(x_BTH.float(), router)
        p = torch.softmax(score / TEMPERATURE, -1)
        p_BTGE = torch.unflatten(p, -1, (count, experts))
        score_BTGE = torch.unflatten(score, -1, (count, experts))
        chosen = p_BTGE.argmax(-1, keepdim=True)
        soft = torch.softmax(score_BTGE * SHARPNESS, -1)
        hard = torch.zeros_like(soft).scatter_(-1, chosen, 1.0)
        pick = hard + soft - soft.detach()
        scale = self.log_scale.exp().view(count, experts)
        weight = (p_BTGE * scale).gather(-1, chosen).squeeze(-1)
        run = run_mask(weight, groups_BT)
        members = self.member.to(x_BTH.dtype)
        neurons = torch.einsum("btge,gen->btgn", pick.to(x_BTH.dtype), members)
        return (neurons * (weight * run).to(x_BTH.dtype).unsqueeze(-1)).flatten(-2)


def run_mask(weight_BTG: Tensor, groups_BT: Tensor) -> Tensor:
    """1.0 for the `groups` largest weights of each row, with a soft gradient at the boundary."""
    count = weight_BTG.shape[-1]
    order = torch.sort(weight_BTG, dim=-1, descending=True, stable=True)
    rank = torch.argsort(order.indices, dim=-1)
    hard = (rank < groups_BT.unsqueeze(-1)).to(weight_BTG.dtype)
    log = order.values.log().detach()
    below = log.gather(-1, groups_BT.clamp(1, count - 1).unsqueeze(-1))
    above = log.gather(-1, (groups_BT.clamp(1, count - 1) - 1).unsqueeze(-1))
    distance = (weight_BTG.log() - (above + below) / 2) * (TEMPERATURE / 2)
    soft = torch.sigmoid(distance)
    inside = ((groups_BT > 0) & (groups_BT < count)).unsqueeze(-1)
    return hard + torch.where(inside, soft - soft.detach(), 0.0)


class Student(torch.nn.Module):
    """The MoGE model in training: the dense FFN with a mask, frozen weights with low-rank deltas.

    Every expert is a subset of its group's neurons, so the MoGE output equals the dense FFN whose
    neuron n of group g is multiplied by weight_g * member[chosen expert of g, n], and whose shared
    neurons are multiplied by 1. That costs what the dense model costs. Low-rank deltas are those of LoRA
    (Hu et al., arXiv 2106.09685).

    dense: the frozen model; its weights are used and not copied except for the FFN, whose neurons are put in the
    layout's order. layout: neurons of the shared expert and of every expert, per layer. rank: of the deltas of q, k,
    v, o, gate, up, down.
    """

    def __init__(self, dense: Teacher, layout: ExpertLayout, rank: int = 16) -> None:
        super().__init__()
        self.dense, self.config, self.layout, self.rank = dense, dense.config, layout, rank
        self.frozen: list[dict[str, Tensor]] = []
        norms = {n: torch.nn.Parameter(w.float().clone()) for n, w in dense.norms.items()}
        self.params = torch.nn.ParameterDict(norms)
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
        self.gates = torch.nn.ModuleList(
            MaskedGate(layout.router[layer], layout.scale[layer], layout.member(layer))
            for layer in range(self.config.layers)
        )

    def linear(self, x: Tensor, layer: int, name: str) -> Tensor:
        frozen = self.frozen[layer][name]
        delta = self.params[f"{layer}_{name}_b"] @ self.params[f"{layer}_{name}_a"]
        return F.linear(x, frozen + delta.to(frozen.dtype), self.dense.bias(layer, name))

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.params[name].to(x.dtype), self.config.rms_norm_eps)

    def forward(self, tokens_BT: Tensor, groups_BT: Tensor) -> Tensor:
        """Final normed hidden states [B, T, hidden] of int64 token ids. groups_BT: int64, routed groups to run
        for each row, 0 to the number of groups."""
        return hidden_states(self, self.dense, tokens_BT, lambda n, y: self.gates[n](y, groups_BT))


def recipe_of(student: Student) -> Recipe:
    """The recipe of a student as trained so far."""
    state = {name: tensor.detach() for name, tensor in student.named_parameters()}
    layers = student.config.layers
    trained = replace(
        student.layout,
        router=torch.stack([state[f"gates.{i}.router"] for i in range(layers)]),
        scale=torch.stack([state[f"gates.{i}.log_scale"].exp() for i in range(layers)]),
    )
    deltas = {n: (state[f"params.{n}_a"], state[f"params.{n}_b"]) for n in delta_names(layers)}
    return Recipe(trained, deltas, {n: state[f"params.{n}"] for n in norm_names(layers)})
