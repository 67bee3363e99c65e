"""openPangu 2.0 as plainly as can be: numpy, float64, a whole text at once, written from published facts and apart from
the engine. Weights are made when they are asked for, by their names in files: a checkpoint can be written of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
HC_EPS = 1e-6
CONFIG: dict[str, Any] = {"architectures": ["OpenPanguV2ForCausalLM"], "model_type": "openpangu_v2"}
CONFIG |= {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 4, "hidden_act": "silu"}
CONFIG |= {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 24, "kv_lora_rank": 16, "v_head_dim": 8}
CONFIG |= {"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "rope_theta": 6.4e6, "rope_interleave": False}
CONFIG |= {"first_k_dense_replace": 1, "n_routed_experts": 6, "n_shared_experts": 1, "num_experts_per_tok": 2}
CONFIG |= {"moe_intermediate_size": 24, "norm_topk_prob": True, "routed_scaling_factor": 2.5}
CONFIG |= {"router_enable_expert_bias": True, "param_sink_number": 3, "use_mome": True, "router_sliding_window": 3}
CONFIG |= {"use_mhc": True, "mhc_num_stream": 4, "mhc_recur_norm": 20, "mhc_use_gamma": True, "sandwich_norm": True}
CONFIG |= {"block_post_layernorm_idx": [0, 2], "dsa_layers": [0, 3], "index_topk": 512, "index_n_heads": 3}
CONFIG |= {"index_head_dim": 12, "swa_layers": [1, 2, 4, 5, 6], "sliding_window_list": [6, 6, 9, 9, 9]}
CONFIG |= {"num_nextn_predict_layers": 3, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5}
CONFIG |= {"tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32"}


def sigmoid(x: Array) -> Array:
    found: Array = 1 / (1 + np.exp(-x))
    return found


def softmax(x: Array) -> Array:
    found = np.exp(x - x.max(-1, keepdims=True))
    shares: Array = found / found.sum(-1, keepdims=True)
    return shares


def doubly(res: Array, rounds: int) -> Array:
    """Sinkhorn's rounds over [old streams, new streams]: old ones begin as distributions over new ones."""
    res = softmax(res) + HC_EPS
    res = res / (res.sum(-2, keepdims=True) + HC_EPS)
    for _ in range(rounds - 1):
        res = res / (res.sum(-1, keepdims=True) + HC_EPS)
        res = res / (res.sum(-2, keepdims=True) + HC_EPS)
    return res


class Pangu2:
    """Fields are those of config.json, others than CONFIG's where given."""

    def __init__(self, seed: int = 0, **fields: Any) -> None:
        self.c, self.seed, self.made = CONFIG | fields, seed, dict[str, Array]()

    def w(self, name: str, *shape: int) -> Array:
        if name not in self.made:
            numbers = np.random.default_rng([self.seed, *name.encode()]).normal(size=shape)
            if "norm" in name:
                numbers = 1 + 0.2 * numbers
            elif "beta" in name or "bias" in name:
                numbers *= 0.5
            elif "alpha" not in name and "sink" not in name:
                numbers *= (3 if "embed" in name or "head" in name else 1.5) * shape[-1] ** -0.5
            self.made[name] = numbers.astype(np.float32).astype(np.float64)
        return self.made[name]

    def write(self, folder: Path) -> Path:
        """A checkpoint, of all weights: those of layers that draft, too."""
        self.logprobs(np.arange(8))
        self.drafting(np.arange(8))
        table = {name: torch.from_numpy(x.astype(np.float32)) for name, x in self.made.items()}
        return checkpoints.write(folder, self.c, table)

    def norm(self, name: str, x: Array, eps: float = 0.0) -> Array:
        scaled: Array = x / np.sqrt((x**2).mean(-1, keepdims=True) + (eps or self.c["rms_norm_eps"]))
        return scaled * self.w(name, x.shape[-1])

    def linear(self, name: str, x: Array, outputs: int) -> Array:
        return x @ self.w(f"{name}.weight", outputs, x.shape[-1]).T

    def turned(self, x: Array, places: Array) -> Array:
        """The first dims of keys, or of queries of heads; pairs lie half of them apart."""
        half = self.c["qk_rope_head_dim"] // 2
        angles = places.reshape(-1, *[1] * (x.ndim - 1)) * self.c["rope_theta"] ** -(np.arange(half) / half)
        a, b, cos, sin = x[..., :half], x[..., half : 2 * half], np.cos(angles), np.sin(angles)
        return np.concatenate((a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]), -1)

    def conv(self, name: str, x: Array) -> Array:
        """What a causal convolution adds, each channel for itself: nothing to the first rows, which fill no kernel."""
        count = self.c["router_sliding_window"]
        taps, out = self.w(f"{name}.weight", x.shape[-1], 1, count)[:, 0], x.copy()
        for t in range(count - 1, len(x)):
            out[t] += (x[t - count + 1 : t + 1] * taps.T).sum(0)
        return out

    def mixing(self, name: str, streams: Array) -> tuple[Array, Array, Array]:
        """What a sublayer reads of streams, what they take of it, and new ones of old ones: [T, 4] twice, [T, 4, 4]."""
        n = self.c["mhc_num_stream"]
        flat = self.norm(f"{name}.norm_gamma", streams.reshape(len(streams), -1), HC_EPS)
        pre, post, res = np.split(self.linear(f"{name}.phi", flat, n * (n + 2)), (n, 2 * n), -1)
        alpha, beta = self.w(f"{name}.branch_alpha", 3), self.w(f"{name}.branch_beta", n * (n + 2))
        pre, post = alpha[0] * pre + beta[:n], alpha[1] * post + beta[n : 2 * n]
        res = doubly((alpha[2] * res + beta[2 * n :]).reshape(-1, n, n), self.c["mhc_recur_norm"])
        return sigmoid(pre) + HC_EPS, 2 * sigmoid(post), res

    def merged(self, streams: Array) -> Array:
        name, n = "model.merge_mhc_module", self.c["mhc_num_stream"]
        flat = self.norm(f"{name}.norm_gamma", streams.reshape(len(streams), -1))
        alpha, beta = self.w(f"{name}.branch_alpha_pre", 1), self.w(f"{name}.branch_beta_pre", n)
        weights = sigmoid(alpha * self.linear(f"{name}.phi", flat, n) + beta) + HC_EPS
        found: Array = np.einsum("ts,tsh->th", weights, streams)
        return found

    def attention(self, n: int, x: Array, places: Array) -> Array:
        """The expanded form. Learned latents come before the text, and every row sees them."""
        c, count, name, heads = self.c, len(x), f"model.layers.{n}.self_attn", self.c["num_attention_heads"]
        nope, turning, rank, sinks = (
            c[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "kv_lora_rank", "param_sink_number")
        )
        latent = self.conv(f"{name}.qa_conv", self.linear(f"{name}.q_a_proj", x, c["q_lora_rank"]))
        latent = self.norm(f"{name}.q_a_layernorm.weight", latent)
        q = self.linear(f"{name}.q_b_proj", latent, heads * (nope + turning)).reshape(count, heads, -1)
        both = self.linear(f"{name}.kv_a_proj_with_mqa", x, rank + turning)
        learned = self.w(f"{name}.param_sink_compressed_kv", sinks, rank)
        seen = np.concatenate((learned, self.conv(f"{name}.compresskv_conv", both[:, :rank])))
        made = self.norm(f"{name}.kv_a_layernorm.weight", seen)
        made = self.linear(f"{name}.kv_b_proj", made, heads * (nope + c["v_head_dim"])).reshape(len(seen), heads, -1)
        keys = np.concatenate((self.w(f"{name}.param_sink_k_pe", sinks, turning), self.turned(both[:, rank:], places)))
        scores = np.einsum("qhd,khd->hqk", q[..., :nope], made[..., :nope])
        scores = scores + np.einsum("qhd,kd->hqk", self.turned(q[..., nope:], places), keys)
        ago = np.arange(count)[:, None] - np.arange(count)
        mask = (ago >= 0) & (ago < dict(zip(c["swa_layers"], c["sliding_window_list"], strict=True)).get(n, count))
        if n in c["dsa_layers"]:
            mask &= self.chosen(f"{name}.indexer", x, latent, places)
        mask = np.pad(mask, ((0, 0), (sinks, 0)), constant_values=True)
        weights = softmax(np.where(mask, scores * (nope + turning) ** -0.5, -np.inf))
        out = np.einsum("hqk,khd->qhd", weights, made[..., nope:]).reshape(count, -1)
        return self.linear(f"{name}.o_proj", self.conv(f"{name}.o_conv", out), c["hidden_size"])

    def chosen(self, name: str, x: Array, latent: Array, places: Array) -> NDArray[np.bool_]:
        """[T, T], the keys that an indexer leaves each row: the best of those that are not later."""
        c, count, heads, dim = self.c, len(x), self.c["index_n_heads"], self.c["index_head_dim"]
        q = self.turned(self.linear(f"{name}.wq_b", latent, heads * dim).reshape(count, heads, dim), places)
        k = self.norm(f"{name}.k_norm.weight", self.linear(f"{name}.wk", x, dim))
        k = self.turned(k, places)
        weights = self.linear(f"{name}.weights_proj", x, heads)
        scores = np.einsum("qh,qhk->qk", weights, np.maximum(np.einsum("qhd,kd->qhk", q, k), 0))
        scores = np.where(np.tri(count, dtype=bool), scores, -np.inf)
        best = np.argsort(-scores, -1, "stable")[:, : c["index_topk"]]
        found = np.zeros((count, count), bool)
        np.put_along_axis(found, best, True, -1)
        return found

    def mlp(self, name: str, x: Array, inner: int) -> Array:
        gate, up = (self.linear(f"{name}.{side}_proj", x, inner) for side in ("gate", "up"))
        return self.linear(f"{name}.down_proj", gate * sigmoid(gate) * up, self.c["hidden_size"])

    def ffn(self, n: int, x: Array) -> Array:
        """Sigmoids, a bias of the choice, weights that add up to a factor; and shared experts."""
        c, name, inner = self.c, f"model.layers.{n}.mlp", self.c["moe_intermediate_size"]
        if n < c["first_k_dense_replace"]:
            return self.mlp(name, x, c["intermediate_size"])
        scores = sigmoid(self.linear(f"{name}.gate", x, c["n_routed_experts"]))
        out = self.mlp(f"{name}.shared_experts", x, inner * c["n_shared_experts"])
        ranks = scores + self.w(f"{name}.e_score_correction_bias", c["n_routed_experts"])
        every = np.stack([self.mlp(f"{name}.experts.{e}", x, inner) for e in range(c["n_routed_experts"])], 1)
        for t, chosen in enumerate(np.argsort(-ranks, -1, "stable")[:, : c["num_experts_per_tok"]]):
            out[t] += c["routed_scaling_factor"] * scores[t, chosen] / scores[t, chosen].sum() @ every[t, chosen]
        return out

    def sublayer(self, n: int, kind: str, places: Array, x: Array) -> Array:
        """With norms before and after."""
        own, before = f"model.layers.{n}", "input" if kind == "attention" else "pre_mlp"
        fresh = self.norm(f"{own}.{before}_layernorm.weight", x)
        found = self.attention(n, fresh, places) if kind == "attention" else self.ffn(n, fresh)
        return self.norm(f"{own}.post_{kind}_layernorm.weight", found)

    def connected(self, name: str, streams: Array, sublayer: Callable[[Array], Array]) -> Array:
        pre, post, res = self.mixing(name, streams)
        y = sublayer(np.einsum("ts,tsh->th", pre, streams))
        mixed: Array = post[..., None] * y[:, None] + np.einsum("trc,trh->tch", res, streams)
        return mixed

    def embedded(self, tokens: Any) -> Array:
        found: Array = self.w("model.embed_tokens.weight", self.c["vocab_size"], self.c["hidden_size"])[tokens]
        return found

    def states(self, tokens: Any) -> Array:
        """[T, H] after the last norm."""
        places = np.arange(len(tokens))
        streams = np.repeat(self.embedded(tokens)[:, None], self.c["mhc_num_stream"], 1)
        for n in range(self.c["num_hidden_layers"]):
            for module, kind in (("attn", "attention"), ("mlp", "mlp")):
                streams = self.connected(
                    f"model.layers.{n}.{module}_mhc_module", streams,
                    partial(self.sublayer, n, kind, places),
                )  # fmt: skip
            if n in self.c["block_post_layernorm_idx"]:
                flat = streams.reshape(len(streams), -1)
                streams = self.norm(f"model.layers.{n}.block_post_layernorm.weight", flat).reshape(streams.shape)
        return self.norm("model.norm.weight", self.merged(streams))

    def logprobs(self, tokens: Any) -> Array:
        """[T, V], row t after tokens[: t + 1]."""
        logits = self.linear("lm_head", self.states(tokens), self.c["vocab_size"])
        return np.log(softmax(logits))

    def drafting(self, tokens: Any) -> list[Array]:
        """States of each head for multi-token prediction, after its norm: row p of head k + 1 is of row p of head k, or
        of the model, and of the next token but k. One stream; a head's text begins with its row 0."""
        found = [self.states(tokens)]
        for k in range(self.c["num_nextn_predict_layers"]):
            n = self.c["num_hidden_layers"] + k
            own, state = f"model.layers.{n}", found[-1][:-1]
            pair = self.norm(f"{own}.enorm.weight", self.embedded(tokens[k + 1 :])), state
            both = np.concatenate((pair[0], self.norm(f"{own}.hnorm.weight", state)), -1)
            x = self.linear(f"{own}.eh_proj", both, self.c["hidden_size"])
            for kind in ("attention", "mlp"):
                x = x + self.sublayer(n, kind, k + 1 + np.arange(len(x)), x)
            found.append(self.norm(f"{own}.shared_head.norm.weight", x))
        return found[1:]
