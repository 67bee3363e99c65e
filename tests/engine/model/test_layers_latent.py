"""DeepSeek-V3: latent attention, a dense layer, then experts of which the best groups are chosen first; and what makes
queries of the layer's input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import texts
import torch
from checkpoints import tensors
from latent_models import LATENT
from layer_fuzz import FEW_AND_MANY, LayerFuzz, load
from torch import Tensor

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ffn.router import Router, choose_best
from fastslow.engine.model.mixers.latent import LatentAttention
from fastslow.engine.model.routed_units import RoutedUnits

CONFIG = LATENT | {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3"}
TOKENS = texts.tokens_of(140, vocab=32)  # longer than a block of attention


def table(config: dict[str, Any]) -> dict[str, Tensor]:
    """Random weights, named as in files."""
    found = tensors(config)
    return {name.replace(".shared_expert.", ".shared_experts."): x for name, x in found.items()}


@pytest.mark.parametrize("kernels", [False, True])
def test_fewer_groups_are_those_of_a_model_that_keeps_fewer(kernels: bool, tmp_path: Path) -> None:
    """Log-probabilities of whole models are those of transformers: `test_mixtures.py`."""
    own, few = table(CONFIG), {"topk_group": 1, "num_experts_per_tok": 2}
    model, other = load(tmp_path / "own", CONFIG, own, kernels=kernels), load(tmp_path / "few", CONFIG | few, own)
    found = texts.logits(model, TOKENS, [129, *[1] * 5, 6], 1).log_softmax(-1)
    torch.testing.assert_close(found, texts.logits(other, TOKENS).log_softmax(-1), rtol=0, atol=1e-4)
    none = load(tmp_path / "none", CONFIG | {"routed_scaling_factor": 1e-9}, own)
    found = texts.logits(model, TOKENS, groups=0).log_softmax(-1)
    torch.testing.assert_close(found, texts.logits(none, TOKENS).log_softmax(-1), rtol=0, atol=1e-4)


def test_a_bias_of_the_choice_is_added_to_probabilities() -> None:
    logits, bias = torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([0.0, 0.0, 0.0, 0.7])
    found = choose_best(logits, Router("softmax", 2, choice_bias=True), bias, torch.tensor([-1]))
    assert found.numbers.tolist() == [[3, 0]]  # by logits and bias 0 and 1 were
    torch.testing.assert_close(found.weights, logits[:, [3, 0]].softmax(-1))


@pytest.fixture(scope="module", params=[pytest.param(False, marks=pytest.mark.slow), True], ids=["torch", "kernels"])
def fuzz(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LayerFuzz:
    return LayerFuzz.of(tmp_path_factory.mktemp("latent"), CONFIG, table(CONFIG), request.param)


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
    assert lite.context == sparse.context == 163840
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
