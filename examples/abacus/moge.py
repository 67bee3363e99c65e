"""The model as it is trained: every expert of a layer in one matrix, batches of packed rows.

The forward is that of openPangu Pro MoE (arXiv 2505.21411); `official` gives the weights their published
names, and `split` makes a mixture of a dense model. All experts are computed and those not chosen are
weighted with zero: at this size that is faster than gathering rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastslow.engine.model.norms import residual, same

THETA = 10000.0
EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model; groups = 0 is a dense one, whose MLP is `shared` wide."""

    vocabulary: int = 512
    hidden: int = 192
    layers: int = 5
    heads: int = 6
    kv_heads: int = 3
    shared: int = 128
    groups: int = 8
    experts: int = 2  # of a group
    width: int = 32  # of an expert
    fast: int = 2  # groups that the preset fast runs
    positions: int = 1024

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def dense(self) -> Shape:
        """The dense model that it is made from: as many neurons as run for a token."""
        return replace(self, groups=0, shared=self.shared + self.groups * self.width)

    def config(self) -> dict[str, Any]:
        """config.json."""
        fields: dict[str, Any] = {
            "architectures": ["PanguEmbeddedForCausalLM"],
            "model_type": "PanguEmbedded",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.shared,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.positions,
            "rope_theta": THETA,
            "rms_norm_eps": EPS,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "bias": True,
            "bos_token_id": 1,
        }
        if self.groups:
            fields |= {
                "architectures": ["PanguProMoEForCausalLM"],
                "model_type": "PanguProMoE",
                "num_experts": self.groups * self.experts,
                "num_experts_per_tok": self.groups,
                "moe_intermediate_size": self.width,
                "shared_expert_intermediate_size": self.shared,
                "mlp_only_layers": [],
            }
        return fields | {"torch_dtype": "bfloat16"}


class Packed(NamedTuple):
    """Rows of text, several samples one after another in each; int64, all [B, L]."""

    tokens: Tensor
    targets: Tensor  # the next token where it is to be learnt, else -100
    positions: Tensor  # within the sample
    samples: Tensor  # which sample of the row, -1 = padding
    groups: Tensor  # routed groups that run for this token


class Norm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
        return (wide * scale * _rounded(self.weight)).to(torch.bfloat16)


class Linear(nn.Module):
    """Weights in float32, products in bfloat16."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * scale * inputs**-0.5)
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.bfloat16()
        return F.linear(x, self.weight.bfloat16(), bias)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = Linear(shape.hidden, width, bias=True)
        self.k_proj = Linear(shape.hidden, keys, bias=True)
        self.v_proj = Linear(shape.hidden, keys, bias=True)
        self.o_proj = Linear(width, shape.hidden, bias=True, scale=(2 * shape.layers) ** -0.5)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        b, l, _ = x.shape
        dim, times = self.shape.head_dim, self.shape.heads // self.shape.kv_heads
        q, k, v = (
            layer(x).view(b, l, -1, dim).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = _turn(q, cos, sin), _turn(k, cos, sin)
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.o_proj(heads.transpose(1, 2).reshape(b, l, -1))
        return out


class Mlp(nn.Module):
    def __init__(self, hidden: int, width: int, layers: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = Linear(hidden, width), Linear(hidden, width)
        self.down_proj = Linear(width, hidden, scale=(2 * layers) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Moge(nn.Module):
    """Shared expert plus one expert of each group that runs."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        count, width, hidden = shape.groups * shape.experts, shape.width, shape.hidden
        self.gate = nn.Parameter(torch.randn(count, hidden) * 0.1 * hidden**-0.5)
        # an even router gives each expert 1 / count: it then weighs one
        self.router_scale = nn.Parameter(torch.full((count,), float(count)))
        self.gates = nn.Parameter(torch.randn(count, width, hidden) * hidden**-0.5)
        self.ups = nn.Parameter(torch.randn(count, width, hidden) * hidden**-0.5)
        scale = (2 * shape.layers * shape.groups * width) ** -0.5
        self.downs = nn.Parameter(torch.randn(count, hidden, width) * scale)
        self.shared_expert = Mlp(hidden, shape.shared, shape.layers)

    def forward(self, x: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Output, and how unevenly experts and groups are used (2 = evenly)."""
        b, l, hidden = x.shape
        groups, experts, width = self.shape.groups, self.shape.experts, self.shape.width
        logits = F.linear(x.float(), _rounded(self.gate))
        probs = logits.softmax(-1).view(b, l, groups, experts)
        chosen = F.one_hot(probs.argmax(-1), experts).to(probs.dtype)
        weights = chosen * probs * _rounded(self.router_scale).view(groups, experts)
        with torch.no_grad():
            best = weights.sum(-1)
            higher = best[..., None, :] > best[..., :, None]
            lower = torch.ones(groups, groups, dtype=torch.bool).tril(-1)
            tied = (best[..., None, :] == best[..., :, None]) & lower
            runs = (higher | tied).sum(-1) < wanted[..., None]
        weights = (weights * runs[..., None]).view(b, l, groups * experts, 1).bfloat16()
        # alike shapes multiply faster
        weights = weights.expand(-1, -1, -1, width).reshape(b, l, -1)
        gate = F.linear(x, self.gates.view(-1, hidden).bfloat16())
        up = F.linear(x, self.ups.view(-1, hidden).bfloat16())
        inner = F.silu(gate) * up * weights
        down = self.downs.bfloat16().permute(1, 0, 2).reshape(hidden, -1)
        y = self.shared_expert(x) + F.linear(inner, down)
        within = logits.view(b, l, groups, experts).softmax(-1)
        uneven = experts * (within.mean((0, 1)) * chosen.mean((0, 1))).sum(-1).mean()
        uneven = uneven + groups * probs.sum(-1).square().sum(-1).mean()
        return y, uneven


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(shape.hidden), Norm(shape.hidden)
        self.self_attn = Attention(shape)
        self.mlp: Moge | Mlp = (
            Moge(shape) if shape.groups else Mlp(shape.hidden, shape.shared, shape.layers)
        )


class Decoder(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Parameter(torch.randn(shape.vocabulary, shape.hidden) * 0.5)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.hidden)
        self.lm_head = nn.Parameter(torch.randn(shape.vocabulary, shape.hidden) * 0.02)

    def forward(self, batch: Packed) -> tuple[Tensor, Tensor]:
        """Logits [B, L, V] in float32, and the mean unevenness of the layers' experts."""
        half = self.shape.head_dim // 2
        turns = THETA ** -(torch.arange(half) / half)
        angles = (batch.positions[..., None] * turns)[:, None]
        cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([-angles.sin(), angles.sin()], -1)
        length = batch.tokens.shape[1]
        mask = (batch.samples[:, :, None] == batch.samples[:, None, :])[:, None]
        mask = mask & torch.ones(length, length, dtype=torch.bool).tril()
        x = F.embedding(batch.tokens, _rounded(self.embed_tokens))
        uneven = [x.new_zeros(())]

        def mlp(inner: Tensor, layer: Layer) -> Tensor:
            if not self.shape.groups:
                return cast(Tensor, layer.mlp(inner))
            y, more = layer.mlp(inner, batch.groups)
            uneven.append(more / self.shape.layers)
            return cast(Tensor, y)

        for layer in self.layers:
            assert isinstance(layer, Layer)
            attend = partial(layer.self_attn, cos=cos, sin=sin, mask=mask)
            x = residual(x, layer.input_layernorm, attend, same)
            x = residual(x, layer.post_attention_layernorm, partial(mlp, layer=layer), same)
        return F.linear(self.norm(x), self.lm_head.bfloat16()).float(), torch.stack(uneven).sum()

    def loss(self, batch: Packed, balance: float) -> tuple[Tensor, Tensor]:
        """Return the loss to minimise, and the cross-entropy alone."""
        logits, uneven = self(batch)
        error = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100)
        return error + balance * uneven, error.detach()


def _rounded(weight: Tensor) -> Tensor:
    """As it will be shipped."""
    return weight.bfloat16().float()


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return (x * cos + x.roll(x.shape[-1] // 2, -1) * sin).bfloat16()


# Sparse upcycling (Komatsuzaki et al., arXiv 2212.05055): the experts of a group begin as copies of each
# other and the router as nearly even, so the mixture computes at first what the dense model did.

Weights = dict[str, Tensor]
_PARTS = ("gate", "up", "down")
ROUTER = 0.1  # spread of the router's first logits: enough for copies to part


def places(weights: Weights, shape: Shape) -> list[tuple[Tensor, Tensor]]:
    """By layer, the neurons of the shared expert, and those of the groups [G, F]: the strongest
    ones are shared, the others dealt one by one."""
    found = []
    for n in range(shape.layers):
        gate, up, down = (weights[f"layers.{n}.mlp.{name}_proj.weight"] for name in _PARTS)
        order = (gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)).argsort(descending=True)
        dealt = order[shape.shared :].view(shape.width, shape.groups).T
        found.append((order[: shape.shared], dealt))
    return found


def split(weights: Weights, shape: Shape, where: list[tuple[Tensor, Tensor]]) -> Weights:
    """The weights, or anything that there is of each weight, in their new places; no router."""
    found = {name: tensor for name, tensor in weights.items() if ".mlp." not in name}
    for n, (shared, dealt) in enumerate(where):
        places = dealt.repeat_interleave(shape.experts, 0)  # [G * experts, F]
        for name in _PARTS:
            weight = weights[f"layers.{n}.mlp.{name}_proj.weight"]
            weight = weight.T if name == "down" else weight
            own, routed = weight[shared], weight[places]
            if name == "down":
                own, routed = own.T, routed.mT
            found[f"layers.{n}.mlp.shared_expert.{name}_proj.weight"] = own.clone()
            found[f"layers.{n}.mlp.{name}s"] = routed.clone()
    return found


def routers(shape: Shape, seed: int) -> Weights:
    """Nearly even routers, under which each chosen expert weighs about one."""
    generator = torch.Generator().manual_seed(seed)
    count = shape.groups * shape.experts
    found: Weights = {}
    for n in range(shape.layers):
        logits = torch.randn(count, shape.hidden, generator=generator)
        found[f"layers.{n}.mlp.gate"] = logits * ROUTER * shape.hidden**-0.5
        found[f"layers.{n}.mlp.router_scale"] = torch.full((count,), float(count))
    return found
