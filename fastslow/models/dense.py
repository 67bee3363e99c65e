from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from fastslow.engine.model.checkpoint import BLOCKS

POSITIONS = 8192  # longest row that can be run here
LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
OFFICIAL = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


@dataclass(frozen=True)
class DenseConfig:
    """Shape of a dense Llama-like model."""

    vocab: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    theta: float
    eps: float
    tied: bool

    @classmethod
    def read(cls, folder: Path) -> DenseConfig:
        """Reads config.json of a LlamaForCausalLM or PanguEmbeddedForCausalLM folder.

        Raises:
            ValueError: another architecture, or an activation other than silu, scaled rotary or MLP biases.
        """
        raw: dict[str, Any] = json.loads((folder / "config.json").read_text())
        name = (raw.get("architectures") or ["?"])[0]
        if name not in ("LlamaForCausalLM", "PanguEmbeddedForCausalLM"):
            raise ValueError(
                "config.json architectures must be LlamaForCausalLM or PanguEmbeddedForCausalLM, "
                f"got {name}"
            )
        if raw.get("hidden_act", "silu") != "silu":
            raise ValueError(f"config.json hidden_act must be silu, got {raw['hidden_act']}")
        if raw.get("rope_scaling"):
            raise ValueError("config.json rope_scaling must be absent, got a scaled rotary")
        if raw.get("mlp_bias"):
            raise ValueError("config.json mlp_bias must be false: MoGE experts have no biases")
        heads = raw["num_attention_heads"]
        return cls(
            vocab=raw["vocab_size"],
            hidden=raw["hidden_size"],
            inner=raw["intermediate_size"],
            layers=raw["num_hidden_layers"],
            heads=heads,
            kv_heads=raw.get("num_key_value_heads", heads),
            head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
            theta=float(raw.get("rope_theta", 10000.0)),
            eps=float(raw.get("rms_norm_eps", 1e-5)),
            tied=bool(raw.get("tie_word_embeddings", False)),
        )


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files, by name."""
    files = sorted(path for path in folder.glob("*.safetensors") if path.name != BLOCKS)
    if not files:
        raise ValueError(f"folder {folder} holds no .safetensors file")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def rotary(positions: int, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin [positions, dim] in float32, half-split."""
    freq = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angle = torch.outer(torch.arange(positions, dtype=torch.float32), freq)
    both = torch.cat((angle, angle), -1)
    return both.cos(), both.sin()


def rotate(x_BHTD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    first, second = x_BHTD.chunk(2, -1)
    return x_BHTD * cos_TD + torch.cat((-second, first), -1) * sin_TD


class KV:
    """Keys and values of B sequences that advance together: [layers, B, kv_heads, room, dim]."""

    def __init__(self, config: DenseConfig, batch: int, room: int, dtype: torch.dtype) -> None:
        shape = (config.layers, batch, config.kv_heads, room, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype)
        self.values = torch.zeros(shape, dtype=dtype)
        self.length = 0


class Dense:
    """A frozen dense Llama: the teacher, and the writer of its own training text.

    Args:
        folder: Hugging Face folder.
        dtype: dtype of the weights and of the computation.
    """

    def __init__(self, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        self.folder = folder
        self.config = DenseConfig.read(folder)
        self.tensors = {name: t.to(dtype) for name, t in read_tensors(folder).items()}
        self.dtype = dtype
        self.cos, self.sin = rotary(POSITIONS, self.config.head_dim, self.config.theta)

    def weight(self, layer: int, linear: str) -> Tensor:
        return self.tensors[f"model.layers.{layer}.{OFFICIAL[linear]}.weight"]

    def bias(self, layer: int, linear: str) -> Tensor | None:
        return self.tensors.get(f"model.layers.{layer}.{OFFICIAL[linear]}.bias")

    @property
    def embedding(self) -> Tensor:
        return self.tensors["model.embed_tokens.weight"]

    @property
    def head(self) -> Tensor:
        return self.embedding if self.config.tied else self.tensors["lm_head.weight"]

    def linear(self, x: Tensor, layer: int, name: str) -> Tensor:
        return F.linear(x, self.weight(layer, name), self.bias(layer, name))

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(
            x, (x.shape[-1],), self.tensors[f"{name}.weight"].to(x.dtype), self.config.eps
        )

    def attention(self, x_BTH: Tensor, layer: int, kv: KV | None) -> Tensor:
        parts = [self.linear(x_BTH, layer, name) for name in "qkv"]
        mixed = attend(self.config, parts, self.cos, self.sin, layer, kv)
        return self.linear(mixed, layer, "o")

    def products(self, x_BTH: Tensor, layer: int) -> Tensor:
        """The FFN's inner neurons h = silu(x Wg) * (x Wu), [B, T, inner]."""
        return F.silu(self.linear(x_BTH, layer, "gate")) * self.linear(x_BTH, layer, "up")

    @torch.no_grad()
    def hidden(self, tokens_BT: Tensor, kv: KV | None = None, watch: Any = None) -> Tensor:
        """Final normed hidden states [B, T, hidden].

        Args:
            tokens_BT: int64 token ids.
            kv: earlier keys and values, extended in place; None for a whole sequence.
            watch: called as watch(layer, ffn_input_BTH, inner_BTN) at every layer, or None.
        """
        x = self.embedding[tokens_BT]
        for layer in range(self.config.layers):
            name = f"model.layers.{layer}"
            x = x + self.attention(self.norm(x, f"{name}.input_layernorm"), layer, kv)
            y = self.norm(x, f"{name}.post_attention_layernorm")
            h = self.products(y, layer)
            if watch is not None:
                watch(layer, y, h)
            x = x + self.linear(h, layer, "down")
        if kv is not None:
            kv.length += tokens_BT.shape[1]
        return self.norm(x, "model.norm")


def attend(
    config: DenseConfig,
    parts: list[Tensor],
    cos: Tensor,
    sin: Tensor,
    layer: int,
    kv: KV | None,
) -> Tensor:
    """Causal grouped-query attention over projected q, k, v [B, T, heads * dim]."""
    q, k, v = (torch.unflatten(p, -1, (-1, config.head_dim)).transpose(1, 2) for p in parts)
    start = kv.length if kv is not None else 0
    stop = start + q.shape[2]
    cos_TD, sin_TD = cos[start:stop].to(q.dtype), sin[start:stop].to(q.dtype)
    q, k = rotate(q, cos_TD, sin_TD), rotate(k, cos_TD, sin_TD)
    if kv is not None:
        kv.keys[layer, :, :, start:stop] = k
        kv.values[layer, :, :, start:stop] = v
        k, v = kv.keys[layer, :, :, :stop], kv.values[layer, :, :, :stop]
    if kv is not None and q.shape[2] == 1:
        # one decode row: fold the query heads of a KV head into rows, which copies no KV
        rows = torch.unflatten(q, 1, (config.kv_heads, -1)).squeeze(3)
        out = F.scaled_dot_product_attention(rows, k, v).flatten(1, 2).unsqueeze(2)
    else:
        repeat = config.heads // config.kv_heads
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(1, 2).flatten(2)
