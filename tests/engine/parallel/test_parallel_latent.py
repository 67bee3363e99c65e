"""Latent attention on several ranks: heads and experts are cut, latents are everywhere."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import texts
import torch
from checkpoints import tensors
from layer_fuzz import LayerFuzz, load, near
from parallel_tools import ranks, weight_bytes

from fastslow.tools.plan.shards import ShardPlan

LATENT: dict[str, Any] = {"vocab_size": 32, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
LATENT |= {"num_attention_heads": 4, "num_key_value_heads": 4, "rope_theta": 10000.0}
LATENT |= {"q_lora_rank": 48, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 32}
LATENT |= {"n_routed_experts": 16, "n_shared_experts": 1, "num_experts_per_tok": 4, "moe_intermediate_size": 32}
LATENT |= {"n_group": 4, "topk_group": 2, "norm_topk_prob": True, "routed_scaling_factor": 2.5}
LATENT |= {"first_k_dense_replace": 1, "max_position_embeddings": 512, "rms_norm_eps": 1e-5}
LATENT |= {"bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "torch_dtype": "float32"}
V3 = LATENT | {"architectures": ["DeepseekV3ForCausalLM"], "num_nextn_predict_layers": 1}
V2 = LATENT | {"architectures": ["DeepseekV2ForCausalLM"], "norm_topk_prob": False, "q_lora_rank": None}
V2 |= {"topk_method": "group_limited_greedy"}
LITE = LATENT | {"architectures": ["Glm4MoeLiteForCausalLM"], "n_group": 1, "topk_group": 1}
EVERY = {"v2": V2, "v3": V3, "lite": LITE}
SLOW = pytest.mark.slow
PLACES = [
    ("v3", "ep=2", 20),
    *(pytest.param(*x, 20, marks=SLOW) for x in product(("v2", "lite"), ("tp=2", "dp=2,ep=2", "ep=4"))),
    *(pytest.param(*x, 400, marks=SLOW) for x in product(EVERY, ("ep=2", "ep=2,tp=2"))),
]


@pytest.mark.parametrize(("name", "layout", "requests"), PLACES)
def test_ranks_say_what_one_says(name: str, layout: str, requests: int, tmp_path: Path) -> None:
    config, table, tokens = EVERY[name], tensors(EVERY[name]), texts.tokens_of(60, vocab=32)
    kin, plain = load(tmp_path / "kin", config, near(table)), load(tmp_path / "one", config, table)
    with ranks(tmp_path / "one", layout) as model:
        slots = np.arange(60) + (model.storage.dp_ranks - 1) * 60
        for wanted in (None, 1, 0):
            found = texts.logits(model, tokens, [40, *[1] * 4, 16], groups=wanted, slots=slots).log_softmax(-1)
            expected = texts.logits(plain, tokens, groups=wanted).log_softmax(-1)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        plan = ShardPlan.of(model.config, model.parallel, torch.float32)
        assert weight_bytes(model._worker.decoder.weights) == plan.shares[0].weights
        assert texts.storage(model, 64 * model.storage.dp_ranks).nbytes == 64 * plan.shares[0].kv_per_token
        LayerFuzz(model, kin, plain).check(requests)
