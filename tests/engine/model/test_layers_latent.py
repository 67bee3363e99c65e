"""DeepSeek-V3: latent attention, a dense layer, then experts of which the best groups are chosen first; and what makes
queries of the layer's input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import texts
import torch
from checkpoints import tensors
from layer_fuzz import FEW_AND_MANY, LayerFuzz, load, near
from reference_model import ReferenceModel, Weighted
from torch import Tensor

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ffn.router import Router, choose_best
from fastslow.engine.model.mixers.latent import LatentAttention
from fastslow.engine.model.routed_units import RoutedUnits

CONFIG: dict[str, Any] = {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3"}
CONFIG |= {"vocab_size": 32, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
CONFIG |= {"num_attention_heads": 4, "num_key_value_heads": 4, "rope_theta": 10000.0}
CONFIG |= {"q_lora_rank": 48, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 32}
CONFIG |= {"n_routed_experts": 16, "n_shared_experts": 1, "num_experts_per_tok": 4, "moe_intermediate_size": 32}
CONFIG |= {"n_group": 4, "topk_group": 2, "norm_topk_prob": True, "routed_scaling_factor": 2.5}
CONFIG |= {"first_k_dense_replace": 1, "max_position_embeddings": 512, "rms_norm_eps": 1e-5}
CONFIG |= {"bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "torch_dtype": "float32"}
WITHOUT = {"q_lora_rank": None, "norm_topk_prob": False}
TOKENS = texts.tokens_of(140, vocab=32)  # longer than a block of attention
LATENT_EPS = 1e-6  # whatever rms_norm_eps says


def table(config: dict[str, Any]) -> dict[str, Tensor]:
    """Random weights, named as in files."""
    found = tensors(config)
    return {name.replace(".shared_expert.", ".shared_experts."): x for name, x in found.items()}


class Reference(ReferenceModel):
    """The expanded form: every head has its own keys and values."""

    def latent(self, name: str, x: Tensor) -> Tensor:
        scaled: Tensor = x / (x.square().mean(-1, keepdim=True) + LATENT_EPS).sqrt() * self.tensors[f"{name}.weight"]
        return scaled

    def _attention(self, name: str, x: Tensor, max_len: int) -> Tensor:
        c, count, heads = self.config, len(x), self.config["num_attention_heads"]
        nope, turning, rank = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["kv_lora_rank"]
        if c["q_lora_rank"]:
            q = self.linear(
                f"{name}.q_b_proj", self.latent(f"{name}.q_a_layernorm", self.linear(f"{name}.q_a_proj", x))
            )
        else:
            q = self.linear(f"{name}.q_proj", x)
        q = q.view(count, heads, -1)
        both = self.linear(f"{name}.kv_a_proj_with_mqa", x)
        shared = self.linear(f"{name}.kv_b_proj", self.latent(f"{name}.kv_a_layernorm", both[:, :rank]))
        k, v = shared.view(count, heads, -1).split((nope, c["v_head_dim"]), -1)
        turned = self.rotated(both[:, None, rank:]).expand(-1, heads, -1)
        q = torch.cat((q[..., :nope], self.rotated(q[..., nope:])), -1)
        scores = torch.einsum("qhd,khd->hqk", q, torch.cat((k, turned), -1)) * (nope + turning) ** -0.5
        weights = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -torch.inf).softmax(-1)
        return self.linear(f"{name}.o_proj", torch.einsum("hqk,khd->qhd", weights, v).reshape(count, -1))

    def rotated(self, x: Tensor) -> Tensor:
        """Pairs lie side by side."""
        pairs = torch.view_as_complex(x.contiguous().unflatten(-1, (-1, 2)))
        rates = self.config["rope_theta"] ** -(torch.arange(0, x.shape[-1], 2).double() / x.shape[-1])
        angles = torch.arange(len(x)).double()[:, None, None] * rates
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)

    def _best_of_all(self, name: str, x: Tensor, running: int | None) -> Weighted:
        """Of the groups whose two best experts, added, are largest."""
        c = self.config
        scores = self.linear(f"{name}.gate", x).sigmoid().tolist()
        shifted = [s + b for s, b in zip(scores, self.tensors[f"{name}.gate.e_score_correction_bias"].tolist())]
        size = len(scores) // c["n_group"]
        groups = [range(g * size, (g + 1) * size) for g in range(c["n_group"])]
        groups.sort(key=lambda group: -sum(sorted(shifted[e] for e in group)[-2:]))
        kept = c["topk_group"] if running is None else running
        allowed = [e for group in groups[:kept] for e in group]
        chosen = sorted(allowed, key=lambda e: -shifted[e])[: c["num_experts_per_tok"] * kept // c["topk_group"]]
        total = sum(scores[e] for e in chosen) if c["norm_topk_prob"] else 1.0
        return [(scores[e] / total * c["routed_scaling_factor"], e) for e in chosen]


@pytest.mark.parametrize(
    ("kernels", "dtype", "atol"), [(False, "float32", 1e-4), (False, "float64", 1e-9), (True, "float32", 1e-4)]
)
@pytest.mark.parametrize("variant", [{}, WITHOUT], ids=["query latent", "without"])
def test_logprobs_are_the_references(
    variant: dict[str, Any], kernels: bool, dtype: str, atol: float, tmp_path: Path
) -> None:
    config = CONFIG | variant
    model, reference = load(tmp_path, config, table(config), dtype, kernels), Reference(tmp_path)
    for groups in (None, 1, 0):
        wanted = reference.logits(TOKENS, groups).log_softmax(-1)
        found = texts.logits(model, TOKENS, [129, *[1] * 5, 6], groups).double().log_softmax(-1)
        torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


def test_a_bias_of_the_choice_is_added_to_probabilities() -> None:
    logits, bias = torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([0.0, 0.0, 0.0, 0.7])
    found = choose_best(logits, Router("softmax", 2, choice_bias=True), bias, torch.tensor([-1]))
    assert found.numbers.tolist() == [[3, 0]]  # by logits and bias 0 and 1 were
    torch.testing.assert_close(found.weights, logits[:, [3, 0]].softmax(-1))


@pytest.fixture(scope="module", params=[pytest.param(False, marks=pytest.mark.slow), True], ids=["torch", "kernels"])
def fuzz(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LayerFuzz:
    folder, weights, kernels = tmp_path_factory.mktemp("latent"), table(CONFIG), request.param
    one, other = (load(folder / name, CONFIG, w, kernels=kernels) for name, w in (("a", weights), ("b", near(weights))))
    return LayerFuzz(one, other)


@FEW_AND_MANY
def test_answers_are_those_of_plain_decoding(fuzz: LayerFuzz, count: int) -> None:
    fuzz.check(count)


V2_LITE: dict[str, Any] = {  # as files of DeepSeek-V2-Lite say it
    "architectures": ["DeepseekV2ForCausalLM"], "attention_bias": False, "aux_loss_alpha": 0.001, "eos_token_id": 100001,
    "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 10944,
    "kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v2", "moe_intermediate_size": 1408,
    "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2, "norm_topk_prob": False,
    "num_attention_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 27, "num_key_value_heads": 16,
    "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000,
    "rope_scaling": {
        "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096, "type": "yarn",
    },
    "routed_scaling_factor": 1.0, "scoring_func": "softmax", "seq_aux": True, "topk_group": 1, "topk_method": "greedy",
    "v_head_dim": 128, "vocab_size": 102400,
}  # fmt: skip
V3_2 = V2_LITE | {  # what is other in DeepSeek-V3.2, and fields of GLM-5
    "architectures": ["DeepseekV32ForCausalLM"], "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    "q_lora_rank": 1536, "norm_topk_prob": True, "n_group": 8, "topk_group": 4, "num_experts_per_tok": 8,
    "index_topk": 2048, "index_n_heads": 64, "index_head_dim": 128, "indexer_rope_interleave": True, "head_dim": 64,
    "index_topk_pattern": None, "num_nextn_predict_layers": 1, "ep_size": 1,
}  # fmt: skip


def test_published_configs() -> None:
    lite, sparse = ModelConfig.from_json(V2_LITE), ModelConfig.from_json(V3_2)
    mixer = lite.layers[0].mixer
    assert isinstance(mixer, LatentAttention) and mixer.query_latent == 0 and mixer.rope.scaling is not None
    assert mixer.scale == pytest.approx(0.1147214) and mixer.rope.scaling.attention_factor == 1
    assert [layer.routed is None for layer in lite.layers] == [True] + [False] * 26
    assert lite.mtp is None and sparse.mtp is not None and RoutedUnits.of(lite) == ("experts", 6, 0)
    assert lite.context == sparse.context == 163840 and sparse.seeing_all.context == 2048
    assert RoutedUnits.of(sparse) == ("groups", 4, 0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"norm_topk_prob": True}, "norm_topk_prob True is not supported, only False is"),
        ({"scoring_func": "sigmoid"}, "scoring_func 'sigmoid' is not supported, only softmax is"),
        ({"topk_method": "best"}, "topk_method 'best' is not one of greedy, group_limited_greedy"),
        ({"topk_method": "group_limited_greedy", "n_group": 5}, "n_group 5 must divide the 64 experts"),
        ({"num_key_value_heads": 1}, "num_key_value_heads 1 is not supported, only 16 is"),
        ({"mlp_layer_types": ["dense"]}, r"mlp_layer_types \['dense'\] must be a list of 27 types"),
        ({"attention_bias": True}, "attention_bias True changes the model in a way that .* does not know here"),
        ({"index_topk": 2048}, "index_topk 2048 changes the model in a way that .* does not know here"),
        ({"qk_rope_head_dim": 63, "head_dim": 63}, "qk_rope_head_dim 63 must be even"),
        ({"kv_lora_rank": None}, "kv_lora_rank is missing"),
    ],
)
def test_configs_that_do_not_fit(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        ModelConfig.from_json(V2_LITE | fields)
