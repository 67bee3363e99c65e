"""Configs of tiny models with latent attention, one of each family."""

from typing import Any

from pangu_2_reference import CONFIG

LATENT: dict[str, Any] = {"vocab_size": 32, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
LATENT |= {"num_attention_heads": 4, "num_key_value_heads": 4, "rope_theta": 10000.0}
LATENT |= {"q_lora_rank": 48, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 32}
LATENT |= {"n_routed_experts": 16, "n_shared_experts": 1, "num_experts_per_tok": 4, "moe_intermediate_size": 32}
LATENT |= {"n_group": 4, "topk_group": 2, "norm_topk_prob": True, "routed_scaling_factor": 2.5}
LATENT |= {"first_k_dense_replace": 1, "max_position_embeddings": 512, "rms_norm_eps": 1e-5}
LATENT |= {"bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "torch_dtype": "float32"}
V3 = LATENT | {"architectures": ["DeepseekV3ForCausalLM"], "num_nextn_predict_layers": 1, "num_hidden_layers": 2}
V2 = LATENT | {"architectures": ["DeepseekV2ForCausalLM"], "norm_topk_prob": False, "q_lora_rank": None}
V2 |= {"topk_method": "group_limited_greedy"}
LITE = LATENT | {"architectures": ["Glm4MoeLiteForCausalLM"], "n_group": 1, "topk_group": 1}
EVERY: dict[str, dict[str, Any]] = {"v2": V2, "v3": V3, "lite": LITE}
GLM5 = LATENT | {"architectures": ["GlmMoeDsaForCausalLM"], "num_nextn_predict_layers": 1, "index_topk": 24}
GLM5 |= {"index_n_heads": 3, "index_head_dim": 32, "indexer_types": ["full", "shared", "full"]}
OPENPANGU = CONFIG | {name: LATENT[name] for name in LATENT.keys() & CONFIG.keys() - {"architectures"}}
OPENPANGU |= {"dsa_layers": [0], "swa_layers": [1, 2, 3, 4, 5], "sliding_window_list": [6, 30, 9, 9, 9]}
OPENPANGU |= {"index_topk": 24, "index_head_dim": 16, "mhc_num_stream": 2, "mhc_recur_norm": 3}
CHOOSING = {"glm5": GLM5, "openpangu": OPENPANGU}  # what rows see of a long text
