"""A family made here: three gated delta nets to each layer of attention, as Qwen3-Next has them, and experts.

Its output gates are not there: those of transformers' class say one half, and ours has half the matrix after them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import peer_models as peers
import pytest
import texts
import torch
from checkpoints import DENSE, tensors, write
from family_tools import KERNELS
from layer_fuzz import LayerFuzz, load, near
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.families.reading import decoder
from fastslow.engine.model.base import Model, kv_cache_for
from fastslow.engine.model.family import ConfigJson, Family, register
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.mixers.delta import GatedDelta
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.mixers.rope import Rope
from fastslow.engine.model.norms import LayerNorms, RmsNorm
from fastslow.engine.model.shape import DecoderShape, Layer, MtpLayer

TYPES = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
CONFIG: dict[str, Any] = DENSE | {"architectures": ["DeltaForCausalLM"], "model_type": "qwen3_next", "vocab_size": 32}
CONFIG |= {"num_hidden_layers": 4, "layer_types": TYPES, "head_dim": 32, "partial_rotary_factor": 0.5}
CONFIG |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_conv_kernel_dim": 4}
CONFIG |= {"linear_key_head_dim": 16, "linear_value_head_dim": 32, "num_experts": 8, "num_experts_per_tok": 2}
CONFIG |= {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "norm_topk_prob": True}
NK, NV, DK, DV = (
    CONFIG[f"linear_{name}"] for name in ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")
)
TOKENS = texts.tokens_of(140, vocab=32)  # longer than a block of attention


def read(raw: ConfigJson) -> DecoderShape:
    sizes = "num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim", "conv_kernel_dim"
    nk, nv, dk, dv, kernel = (raw[f"linear_{name}"] for name in sizes)
    tiled = bool(raw.get("tiled"))
    delta = GatedDelta(nk, nv, dk, dv, kernel, raw["rms_norm_eps"], tiled, decay_applied=tiled)
    dim, norm = raw["head_dim"], RmsNorm(raw["rms_norm_eps"], 1.0)
    width = int(dim * raw["partial_rotary_factor"])
    rope = Rope(dim, raw["rope_theta"], raw["max_position_embeddings"], width=width)
    heads = raw["num_attention_heads"], raw["num_key_value_heads"]
    attention = GroupedAttention(*heads, dim, rope, query_norm=norm, key_norm=norm)
    router = Router("softmax", raw["num_experts_per_tok"], normed=raw["norm_topk_prob"])
    expert, shared = (DenseMlp(raw[f"{name}_intermediate_size"]) for name in ("moe", "shared_expert"))
    experts = RoutedExperts(router, raw["num_experts"], expert, shared)
    shape = decoder(raw, Layer(attention, experts))

    def one(n: int, layer: Layer) -> Layer:
        linear = raw["layer_types"][n] == "linear_attention"
        return Layer(delta if linear else attention, experts, LayerNorms(norm))

    mtp = MtpLayer.apart(Layer(attention, experts, LayerNorms(norm)), norm)
    return replace(shape.each(one), norm=norm, mtp=mtp)


register(Family(("DeltaForCausalLM",), read))


def table(seed: int = 0) -> dict[str, Tensor]:
    """Random weights, those of most norms less one."""
    found = tensors(CONFIG, seed)
    found["lm_head.weight"] /= 2  # log-probabilities spread less, and so do errors
    for name, weight in found.items():
        if "mtp.pre_fc_norm" in name:
            weight.fill_(1.0)
        weight -= float("norm" in name and "linear_attn" not in name)
    return found


def theirs(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same as transformers has it: fused matrices, gates that say one half, and twice what comes after them."""
    found = {name: weight for name, weight in own.items() if not name.startswith("mtp.")}
    for n, kind in enumerate(TYPES):
        p = f"model.layers.{n}"
        found[f"{p}.mlp.shared_expert.down_proj.weight"] = 2 * own[f"{p}.mlp.shared_expert.down_proj.weight"]
        found[f"{p}.mlp.shared_expert_gate.weight"] = torch.zeros(1, CONFIG["hidden_size"])
        if kind == "full_attention":
            q = own[f"{p}.self_attn.q_proj.weight"].unflatten(0, (-1, CONFIG["head_dim"]))
            found[f"{p}.self_attn.q_proj.weight"] = torch.cat((q, torch.zeros_like(q)), 1).flatten(0, 1)
            found[f"{p}.self_attn.o_proj.weight"] = 2 * own[f"{p}.self_attn.o_proj.weight"]
            continue
        qkv, z, b, a = (found.pop(f"{p}.linear_attn.in_proj_{side}.weight") for side in ("qkv", "z", "b", "a"))
        q, k, v = qkv.split((NK * DK, NK * DK, NV * DV))
        for name, parts in (("qkvz", (q, k, v, z)), ("ba", (b, a))):
            fused = torch.cat([part.unflatten(0, (NK, -1)) for part in parts], 1).flatten(0, 1)
            found[f"{p}.linear_attn.in_proj_{name}.weight"] = fused
    return found


def delta_rows(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """[T, H] of a gated delta net, row by row; w: by the ends of names."""
    conv, state = torch.zeros(3, 2 * NK * DK + NV * DV).double(), torch.zeros(NV, DK, DV).double()
    out = []
    for row in x:
        window = torch.cat((conv, (w["in_proj_qkv.weight"] @ row)[None]))
        conv = window[1:]
        q, k, v = F.silu((window * w["conv1d.weight"][:, 0].T).sum(0)).split((NK * DK, NK * DK, NV * DV))
        q, k, v = q.view(NK, DK), k.view(NK, DK), v.view(NV, DV)
        q, k = (y / (y.square().sum(-1, keepdim=True) + 1e-6).sqrt() for y in (q, k))
        gate = torch.exp(-w["A_log"].exp() * F.softplus(w["in_proj_a.weight"] @ row + w["dt_bias"]))
        beta, heads = (w["in_proj_b.weight"] @ row).sigmoid(), []
        for n in range(NV):
            key, query = k[n * NK // NV], q[n * NK // NV] / DK**0.5
            state[n] *= gate[n]
            state[n] += torch.outer(key, (v[n] - key @ state[n]) * beta[n])
            heads.append(query @ state[n])
        o = torch.stack(heads)
        o = o / (o.square().mean(-1, keepdim=True) + CONFIG["rms_norm_eps"]).sqrt() * w["norm.weight"]
        z = (w["in_proj_z.weight"] @ row).view(NV, DV)
        out.append(w["out_proj.weight"] @ (o * F.silu(z)).flatten())
    return torch.stack(out)


def attention_rows(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """[T, H] of the layer that sees the whole text; the first half of a head's dims turns."""
    c, count, dim = CONFIG, len(x), CONFIG["head_dim"]
    width = int(dim * c["partial_rotary_factor"])
    angles = torch.arange(count)[:, None].double() * c["rope_theta"] ** -(torch.arange(0, width, 2).double() / width)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    q, k, v = (F.linear(x, w[f"{side}_proj.weight"]).view(count, -1, dim) for side in "qkv")

    def placed(y: Tensor, side: str) -> Tensor:
        y = y / (y.square().mean(-1, keepdim=True) + c["rms_norm_eps"]).sqrt() * (1 + w[f"{side}_norm.weight"])
        pairs = torch.complex(*y[..., :width].chunk(2, -1)) * turn
        return torch.cat((pairs.real, pairs.imag, y[..., width:]), -1)

    q, k, v = placed(q, "q"), placed(k, "k").repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / dim**0.5
    weights = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -torch.inf).softmax(-1)
    return F.linear(torch.einsum("hqk,khd->qhd", weights, v).reshape(count, -1), w["o_proj.weight"])


def reference(own: dict[str, Tensor], tokens: list[int], running: int | None = None) -> Tensor:
    """[T, V] log-probabilities, in float64, of a whole text at once. running: experts of a token; None: all chosen."""
    w = {name: tensor.double() for name, tensor in own.items()}

    def norm(name: str, x: Tensor) -> Tensor:
        scaled: Tensor = x / (x.square().mean(-1, keepdim=True) + CONFIG["rms_norm_eps"]).sqrt()
        return scaled * (1 + w[f"{name}.weight"])

    def mlp(name: str, x: Tensor) -> Tensor:
        gate, up = (F.linear(x, w[f"{name}.{side}_proj.weight"]) for side in ("gate", "up"))
        return F.linear(F.silu(gate) * up, w[f"{name}.down_proj.weight"])

    x = w["model.embed_tokens.weight"][tokens]
    for n, kind in enumerate(TYPES):
        p = f"model.layers.{n}"
        name, rows = (f"{p}.self_attn.", attention_rows) if "full" in kind else (f"{p}.linear_attn.", delta_rows)
        parts = {key.removeprefix(name): value for key, value in w.items() if key.startswith(name)}
        x = x + rows(parts, norm(f"{p}.input_layernorm", x))
        fresh = norm(f"{p}.post_attention_layernorm", x)
        x = x + mlp(f"{p}.mlp.shared_expert", fresh)
        best = F.linear(fresh, w[f"{p}.mlp.gate.weight"]).sort(dim=-1, descending=True)
        for t, row in enumerate(fresh):
            weights = best.values[t, : CONFIG["num_experts_per_tok"] if running is None else running].softmax(-1)
            for weight, e in zip(weights, best.indices[t].tolist()):
                x[t] += weight * mlp(f"{p}.mlp.experts.{e}", row)
    return F.linear(norm("model.norm", x), w["lm_head.weight"]).log_softmax(-1)


def logprobs(model: Model, tokens: list[int], sizes: Sequence[int], groups: int | None = None) -> Tensor:
    """[T, V] of a text alone, in chunks."""
    found = texts.cached_logits(model, kv_cache_for(model, 10, 16), tokens, sizes, groups)
    return found.double().log_softmax(-1)


@pytest.mark.parametrize(
    ("dtype", "running", "kernels"),
    [*(("float32", None, kernels) for kernels in KERNELS), *(("float64", n, False) for n in (None, 1, 0))],
)
def test_logprobs_are_the_references(dtype: str, running: int | None, kernels: bool, tmp_path: Path) -> None:
    own, chunks = table(), [90, 1, 32, 4, 4, 1, 1, 7]
    found = logprobs(load(tmp_path, CONFIG, own, dtype, kernels), TOKENS, chunks, running)
    torch.testing.assert_close(
        found, reference(own, TOKENS, running), rtol=0, atol=1e-4 if dtype == "float32" else 1e-9
    )


def test_logprobs_are_those_of_transformers(tmp_path: Path) -> None:
    own = table()
    folder = write(tmp_path / "theirs", CONFIG, theirs(own))
    other = peers.transformers().Qwen3NextForCausalLM.from_pretrained(folder).eval()
    found = logprobs(load(tmp_path / "own", CONFIG, own), TOKENS, [140])
    torch.testing.assert_close(found, peers.logprobs(other, TOKENS), rtol=0, atol=1e-4)


def tiled(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as GGUF files of Qwen3.5 have them: value heads in turn over key heads, decays applied."""
    found = dict(own)
    heads = torch.arange(NV).view(NK, -1).T.flatten()
    values = (heads[:, None] * DV + torch.arange(DV)).flatten()
    rows = torch.cat((torch.arange(2 * NK * DK), 2 * NK * DK + values))
    for n, kind in enumerate(TYPES):
        if kind != "linear_attention":
            continue
        p = f"model.layers.{n}.linear_attn"
        for name, order in (("in_proj_qkv.weight", rows), ("conv1d.weight", rows), ("in_proj_z.weight", values)):
            found[f"{p}.{name}"] = own[f"{p}.{name}"][order]
        for name in ("in_proj_a.weight", "in_proj_b.weight", "dt_bias"):
            found[f"{p}.{name}"] = own[f"{p}.{name}"][heads]
        found[f"{p}.decay"] = -found.pop(f"{p}.A_log")[heads].exp()
        found[f"{p}.out_proj.weight"] = own[f"{p}.out_proj.weight"][:, values]
    return found


def test_heads_in_turn_and_applied_decays_are_the_same_model(tmp_path: Path) -> None:
    own = table()
    plain = load(tmp_path / "plain", CONFIG, own, "float64")
    turned = load(tmp_path / "tiled", CONFIG | {"tiled": 1}, tiled(own), "float64")
    found, wanted = (logprobs(model, TOKENS, [90, 1, 32, 4, 13]) for model in (turned, plain))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.fixture(scope="module", params=KERNELS, ids=["torch", "kernels"])
def fuzz(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LayerFuzz:
    folder, own, kernels = tmp_path_factory.mktemp("delta"), table(), request.param
    models = (load(folder / str(n), CONFIG, each, kernels=kernels) for n, each in enumerate((own, near(own))))
    return LayerFuzz(*models)


def test_answers_are_those_of_plain_decoding(fuzz: LayerFuzz) -> None:
    fuzz.check(60)


@pytest.mark.slow
def test_many_answers_are_those_of_plain_decoding(fuzz: LayerFuzz) -> None:
    fuzz.check(2000, seed=1)
