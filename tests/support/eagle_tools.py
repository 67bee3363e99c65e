"""Published EAGLE-3 heads for tiny targets, in both layouts, and one more forward of them."""

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastslow.draft.head.eagle import embedding_of, read_eagle
from fastslow.draft.head.head import EagleHead
from fastslow.engine.model.config import ModelConfig

LAYER: dict[str, Any] = {"num_hidden_layers": 1, "hidden_act": "silu", "intermediate_size": 40}
LAYER |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
LAYER |= {"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 256}
SHAPES: list[dict[str, Any]] = [
    {}, {"norm_before_residual": True}, {"norm_before_fc": True, "norm_output": True}, {"fc_norm": True},
    {"attention_bias": True, "mlp_bias": True}, {"eagle_aux_hidden_state_layer_ids": [2]},
    {"embedding": True, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 6},
    {"draft": 12, "rope_theta": 500.0},
]  # fmt: skip
TOP = (
    *("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output", "target_hidden_size"),
    "eagle_aux_hidden_state_layer_ids",
)


def eagle_config(target: Path, layout: str = "original", draft: int = 10, **fields: Any) -> dict[str, Any]:
    """A config.json in a layout, "original" or "speculators", for the target in a folder."""
    theirs = json.loads((target / "config.json").read_text())
    same = {name: theirs[name] for name in ("hidden_size", "vocab_size")}
    top = {name: fields.pop(name) for name in TOP if name in fields}
    layer = {**same, **LAYER, **fields}
    top = {"eagle_aux_hidden_state_layer_ids": [1, 2], "draft_vocab_size": draft, **top}
    if layout == "original":
        return {"architectures": ["LlamaForCausalLMEagle3"], **layer, **top}
    return {
        "architectures": ["Eagle3DraftModel"], "speculators_model_type": "eagle3",
        "transformer_layer_config": {"model_type": "llama", **layer}, **top,
    }  # fmt: skip


def eagle_weights(config: dict[str, Any], seed: int = 0, embedding: bool = False) -> dict[str, Tensor]:
    """Random ones of every tensor that a config asks for, under the names of its layout."""
    c = config.get("transformer_layer_config", config)
    prefix = "midlayer." if c is config else "layers.0."
    hidden, inner = c["hidden_size"], c["num_attention_heads"] * c["head_dim"]
    keys, neurons = c["num_key_value_heads"] * c["head_dim"], c["intermediate_size"]
    theirs, vocab = config.get("target_hidden_size") or hidden, c["vocab_size"]
    count, draft = len(config["eagle_aux_hidden_state_layer_ids"]), config["draft_vocab_size"]
    linear = {
        f"{prefix}self_attn.q_proj": (inner, 2 * hidden, "attention_bias"),
        f"{prefix}self_attn.k_proj": (keys, 2 * hidden, "attention_bias"),
        f"{prefix}self_attn.v_proj": (keys, 2 * hidden, "attention_bias"),
        f"{prefix}self_attn.o_proj": (hidden, inner, "attention_bias"),
        f"{prefix}mlp.gate_proj": (neurons, hidden, "mlp_bias"),
        f"{prefix}mlp.up_proj": (neurons, hidden, "mlp_bias"),
        f"{prefix}mlp.down_proj": (hidden, neurons, "mlp_bias"),
        "fc": (hidden, count * theirs, ""),
        "lm_head": (draft, hidden, ""),
    }
    names = ("input_layernorm", "hidden_norm", "post_attention_layernorm")
    norms = dict.fromkeys([*(f"{prefix}{name}" for name in names), "norm"], hidden)
    if c.get("model_type") == "qwen3":
        norms |= dict.fromkeys((f"{prefix}self_attn.{x}_norm" for x in "qk"), c["head_dim"])
    if config.get("norm_before_fc"):
        norms["input_norm"] = count * theirs
    if config.get("fc_norm"):
        norms |= {f"fc_norm.{n}": theirs for n in range(count)}
    random = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}
    for name, (outputs, inputs, biased) in linear.items():
        size = 3.0 if name == "lm_head" else 1.0
        made[f"{name}.weight"] = torch.randn(outputs, inputs, generator=random) * size / inputs**0.5
        if c.get(biased):
            made[f"{name}.bias"] = torch.randn(outputs, generator=random) * 0.3
    for name, size in norms.items():
        made[f"{name}.weight"] = 1 + 0.3 * torch.randn(size, generator=random)
    if embedding:
        made["embed_tokens.weight"] = torch.randn(vocab, hidden, generator=random)
    if draft < vocab:
        tokens = torch.randperm(vocab, generator=random)[:draft].sort().values
        made["d2t"] = tokens - torch.arange(draft)
        made["t2d"] = torch.zeros(vocab, dtype=torch.bool)
        made["t2d"][tokens] = True
    return made


def write_eagle(
    folder: Path,
    target: Path,
    layout: str = "original",
    draft: int = 10,
    *,
    seed: int = 0,
    embedding: bool = False,
    **fields: Any,
) -> Path:
    """A random head of float32 for the target in a folder; `fields` are of its config."""
    config = eagle_config(target, layout, draft, **fields)
    return write_files(folder, config, eagle_weights(config, seed, embedding))


def write_files(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder


def plain_head(folder: Path, target: Path) -> EagleHead:
    config, weights = read_eagle(folder, ModelConfig.from_folder(target))
    return EagleHead(config, weights, embedding_of(folder, config, target))


def eagle_text(head: EagleHead, count: int = 7) -> tuple[Tensor, list[int]]:
    random = torch.Generator().manual_seed(1)
    features = torch.randn(count, head._eagle.features, generator=random) * 2
    return features, torch.randint(0, 12, (count,), generator=random).tolist()


class ReferenceEagle:
    """As plainly as can be, after the paper (arXiv 2503.01840): float64, one row after the other."""

    def __init__(self, folder: Path, target: Path) -> None:
        raw = json.loads((folder / "config.json").read_text())
        self._top: dict[str, Any] = raw
        self._layer: dict[str, Any] = raw.get("transformer_layer_config", raw)
        self._prefix = "layers.0" if "transformer_layer_config" in raw else "midlayer"
        tensors = load_file(folder / "model.safetensors")
        self._w = {n: t.double() for n, t in tensors.items()}
        if "embed_tokens.weight" not in self._w:
            theirs = load_file(target / "model.safetensors")["model.embed_tokens.weight"]
            self._w["embed_tokens.weight"] = theirs.double()
        offsets = tensors.get("d2t", torch.tensor(0))
        self.tokens: list[int] = (torch.arange(raw["draft_vocab_size"]) + offsets).tolist()

    def chain(self, features: Tensor, after: list[int], drafted: list[int]) -> Tensor:
        """float64 [1 + drafted, D] from features [T, F] and the T tokens, each the one after its row."""
        keys: list[Tensor] = []
        values: list[Tensor] = []
        out = torch.empty(0)
        for row, token in zip(features.double(), after, strict=True):
            out = self._row(self._fused(row), token, keys, values)
        outs = [out]
        for token in drafted:
            outs.append(self._row(outs[-1], token, keys, values))
        normed = outs if self._top.get("norm_output") else [self._norm("norm", x) for x in outs]
        return torch.stack([self._w["lm_head.weight"] @ x for x in normed])

    def _fused(self, row: Tensor) -> Tensor:
        if self._top.get("norm_before_fc"):
            row = self._norm("input_norm", row)
        if self._top.get("fc_norm"):
            each = row.chunk(len(self._top["eagle_aux_hidden_state_layer_ids"]))
            row = torch.cat([self._norm(f"fc_norm.{n}", x) for n, x in enumerate(each)])
        return self._w["fc.weight"] @ row

    def _row(self, state: Tensor, token: int, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        p, size = self._prefix, self._layer["head_dim"]
        embedded = self._norm(f"{p}.input_layernorm", self._w["embed_tokens.weight"][token])
        normed = self._norm(f"{p}.hidden_norm", state)
        pair = torch.cat((embedded, normed))
        q, k, v = (self._linear(f"{p}.self_attn.{x}_proj", pair).view(-1, size) for x in "qkv")
        if f"{p}.self_attn.q_norm.weight" in self._w:
            q = torch.stack([self._norm(f"{p}.self_attn.q_norm", x) for x in q])
            k = torch.stack([self._norm(f"{p}.self_attn.k_norm", x) for x in k])
        at = len(keys)
        keys.append(self._turned(k, at))
        values.append(v)
        known, said = (torch.stack(x).repeat_interleave(len(q) // len(k), 1) for x in (keys, values))
        scores = (known * self._turned(q, at)).sum(-1) / math.sqrt(size)  # [rows, heads]
        seen = (torch.softmax(scores, 0)[..., None] * said).sum(0).flatten()
        residual = normed if self._top.get("norm_before_residual") else state
        x = residual + self._linear(f"{p}.self_attn.o_proj", seen)
        y = self._norm(f"{p}.post_attention_layernorm", x)
        gate = self._linear(f"{p}.mlp.gate_proj", y)
        x = x + self._linear(f"{p}.mlp.down_proj", gate * torch.sigmoid(gate) * self._linear(f"{p}.mlp.up_proj", y))
        return self._norm("norm", x) if self._top.get("norm_output") else x

    def _turned(self, heads: Tensor, position: int) -> Tensor:
        a, b = heads.chunk(2, -1)
        powers = torch.arange(a.shape[-1], dtype=torch.float64) / a.shape[-1]
        angles = position * self._layer["rope_theta"] ** -powers
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return x / math.sqrt(float((x * x).mean()) + self._layer["rms_norm_eps"]) * self._w[f"{name}.weight"]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._w[f"{name}.weight"], self._w.get(f"{name}.bias"))
