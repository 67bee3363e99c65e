"""Writes GGUF files of openPangu 2.0 as ik_llama.cpp's converter does: names of tensors and keys are its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
from gguf_writer import Change, Pick, add_fields, f32, finish, joined
from safetensors.torch import load_file
from torch import Tensor

ARCH = "openpangu"
WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight", "model.merge_mhc_module.phi.weight": "merge_mhc_phi.weight",
    "model.merge_mhc_module.branch_alpha_pre": "merge_mhc_alpha",
    "model.merge_mhc_module.branch_beta_pre": "merge_mhc_beta", "model.merge_mhc_module.norm_gamma": "merge_mhc_gamma",
}  # fmt: skip
BLOCK = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm", "pre_mlp_layernorm": "ffn_norm",
    "post_mlp_layernorm": "post_ffw_norm", "block_post_layernorm": "block_post_norm", "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm", "self_attn.q_b_proj": "attn_q_b", "self_attn.o_proj": "attn_output",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa", "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b", "self_attn.qa_conv": "attn_qa_conv", "self_attn.o_conv": "attn_o_conv",
    "self_attn.compresskv_conv": "attn_compresskv_conv", "self_attn.param_sink_compressed_kv": "attn_param_sink_kv",
    "self_attn.param_sink_k_pe": "attn_param_sink_k_pe", "self_attn.indexer.k_norm": "attn_indexer_k_norm",
    "self_attn.indexer.wk": "attn_indexer_k", "self_attn.indexer.wq_b": "attn_indexer_q_b",
    "self_attn.indexer.weights_proj": "attn_indexer_weights_proj", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp",
    "mlp.e_score_correction_bias": "exp_probs_b.bias", "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps", "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp", "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp", "shared_head.norm": "nextn.shared_head_norm",
    **{f"{a}_mhc_module.{b}": f"{a}_mhc_{c}" for a in ("attn", "mlp") for b, c in (
        ("phi", "phi"), ("branch_alpha", "alpha"), ("branch_beta", "beta"), ("norm_gamma", "gamma"),
    )},
    **{name: f"nextn.{name}" for name in ("enorm", "hnorm", "eh_proj")},
}  # fmt: skip
KEYS = {  # fields of config.json, and what writes them
    "max_position_embeddings": "context_length", "hidden_size": "embedding_length", "vocab_size": "vocab_size",
    "intermediate_size": "feed_forward_length", "num_attention_heads": "head_count",
    "num_key_value_heads": "head_count_kv", "rope_theta": "rope_freq_base", "rms_norm_eps": "layer_norm_rms_eps",
    "num_experts_per_tok": "expert_used_count", "first_k_dense_replace": "leading_dense_block_count",
    "q_lora_rank": "q_lora_rank", "kv_lora_rank": "kv_lora_rank", "v_head_dim": "value_length",
    "n_routed_experts": "expert_count", "moe_intermediate_size": "expert_feed_forward_length",
    "n_shared_experts": "expert_shared_count", "norm_topk_prob": "expert_weights_norm",
    "routed_scaling_factor": "expert_weights_scale", "qk_rope_head_dim": "rope_dimension_count",
}  # fmt: skip
OWN = {
    "num_nextn_predict_layers": "nextn_predict_layers", "index_n_heads": "attention.indexer.head_count",
    "index_head_dim": "attention.indexer.key_length", "index_topk": "attention.indexer.top_k",
    **{name: name for name in ("mhc_num_stream", "mhc_recur_norm", "param_sink_number")},
}  # fmt: skip


def write_openpangu(
    folder: Path, path: Path, pick: Pick = f32, older: bool = False, change: Change = lambda writer: None
) -> Path:
    """The checkpoint in a folder as a GGUF file. older: keys' and values' matrices lie in one, too."""
    config, writer = json.loads((folder / "config.json").read_text()), gguf.GGUFWriter(path, ARCH)
    writer.add_block_count(config["num_hidden_layers"] + config["num_nextn_predict_layers"])
    add_fields(writer, config, KEYS)
    writer.add_key_length(config["qk_nope_head_dim"] + config["qk_rope_head_dim"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    for name, key in OWN.items():
        writer.add_uint32(f"{ARCH}.{key}", config[name])
    for name in ("swa_layers", "sliding_window_list"):
        writer.add_array(f"{ARCH}.{name}", config[name])
    change(writer)
    arranged = _arranged(load_file(folder / "model.safetensors"), config, older)
    finish(writer, ((name, tensor.float().numpy()) for name, tensor in arranged), pick)
    return path


def _arranged(tensors: Mapping[str, Tensor], config: Mapping[str, Any], older: bool) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in joined(tensors):
        if name.endswith("kv_b_proj.weight"):
            each = tensor.unflatten(0, (config["num_attention_heads"], -1))
            keys, values = each.split((config["qk_nope_head_dim"], config["v_head_dim"]), 1)
            yield _block(name).replace("kv_b", "k_b"), keys.mT.flatten(0, 1)
            yield _block(name).replace("kv_b", "v_b"), values.flatten(0, 1)
            if older:
                yield _block(name), tensor
        else:
            yield WHOLE.get(name) or _block(name), tensor[:, 0] if "conv" in name else tensor


def _block(name: str) -> str:
    number, _, rest = name.removeprefix("model.layers.").partition(".")
    stem = rest.removesuffix(".weight")
    return f"blk.{number}.{BLOCK[stem]}{rest.removeprefix(stem)}"
