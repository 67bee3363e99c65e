"""A GGUF file of random weights in the shape of a Llama, Qwen3.5, Gemma 4, GLM or openPangu: what speed is measured with.

    python benchmarks/random_gguf.py llama-1.2B --type Q4_K --out llama.gguf
    python benchmarks/random_gguf.py 0.8B --out q.gguf
    python benchmarks/random_gguf.py 35B-A3B --layers 8 --type Q4_K --out moe.gguf
    python benchmarks/random_gguf.py gemma4-E4B --type Q4_0 --out gemma.gguf
    python benchmarks/random_gguf.py GLM-4.7-Flash --layers 8 --type Q4_0 --out glm.gguf
    python benchmarks/random_gguf.py openPangu-2.0-Flash --layers 5 --type Q4_0 --head Q4_0 --no-mtp --out pangu.gguf
    python benchmarks/peers.py --gguf q.gguf --model q.gguf --engines fastslow:file,llama.cpp:file

Matrices are random blocks of --type, embedding and head those of --head; norms, convolutions and routers are float32.
The tokenizer knows single bytes, and is filled up to the model's vocabulary. The layer for multi-token prediction is
in the file, unless --no-mtp is given; its drafts are hardly ever right.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, ExpertGatingFuncType, GGUFValueType, GGUFWriter, TokenType
from gguf import GGMLQuantizationType as Kind
from gguf.quants import quant_shape_to_byte_shape
from numpy.typing import NDArray
from tokenizers.pre_tokenizers import ByteLevel

from fastslow.engine.checkpoint.gguf_shard import SCALES
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.family import GGUF_FIELDS, GGUF_TOP, family_of
from fastslow.engine.model.mixers.latent import LatentAttention
from fastslow.engine.model.tensors import mtp_shapes, tensor_shapes
from fastslow.tools.plan.published import KNOWN

LLAMA = {"architectures": ["LlamaForCausalLM"], "rope_theta": 5e5, "tie_word_embeddings": True}
QWEN = {
    "architectures": ["Qwen3_5ForCausalLM"], "vocab_size": 248_320, "max_position_embeddings": 262_144,
    "head_dim": 256, "linear_num_key_heads": 16, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4, "full_attention_interval": 4, "rope_theta": 1e7, "mtp_num_hidden_layers": 1,
    "tie_word_embeddings": True,
}  # fmt: skip
GEMMA = {
    "architectures": ["Gemma4ForCausalLM"], "vocab_size": 262_144, "max_position_embeddings": 131_072,
    "head_dim": 256, "global_head_dim": 512, "rope_theta": 1e6, "final_logit_softcapping": 30.0,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {  # fields of config.json
    "llama-135M": {
        **LLAMA, "vocab_size": 49_152, "max_position_embeddings": 8192, "hidden_size": 576, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
    },
    "llama-1.2B": {
        **LLAMA, "vocab_size": 128_256, "max_position_embeddings": 131_072, "hidden_size": 2048,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 8192,
    },
    "0.8B": {
        **QWEN, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 8, "num_key_value_heads": 2,
        "linear_num_value_heads": 16, "intermediate_size": 3584,
    },
    "4B": {
        **QWEN, "hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 16, "num_key_value_heads": 4,
        "linear_num_value_heads": 32, "intermediate_size": 9216,
    },
    "35B-A3B": {
        **QWEN, "architectures": ["Qwen3_5MoeForCausalLM"], "tie_word_embeddings": False, "hidden_size": 2048,
        "num_hidden_layers": 40, "num_attention_heads": 16, "num_key_value_heads": 2, "linear_num_value_heads": 32,
        "num_experts": 256, "num_experts_per_tok": 8, "intermediate_size": 512, "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
    },
    "gemma4-E4B": {
        **GEMMA, "hidden_size": 2560, "num_hidden_layers": 42, "num_attention_heads": 8, "num_key_value_heads": 2,
        "intermediate_size": 10240, "sliding_window": 512, "num_kv_shared_layers": 18,
        "hidden_size_per_layer_input": 256,
    },
    "gemma4-26B-A4B": {
        **GEMMA, "hidden_size": 2816, "num_hidden_layers": 30, "num_attention_heads": 16, "num_key_value_heads": 8,
        "intermediate_size": 2112, "sliding_window": 1024, "hidden_size_per_layer_input": 0, "num_experts": 128,
        "top_k_experts": 8, "moe_intermediate_size": 704, "enable_moe_block": True, "attention_k_eq_v": True,
        "num_global_key_value_heads": 2,
    },
    "GLM-4.7-Flash": {
        "architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 154_880, "max_position_embeddings": 202_752,
        "hidden_size": 2048, "num_hidden_layers": 47, "num_attention_heads": 20, "q_lora_rank": 768,
        "kv_lora_rank": 512, "qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "v_head_dim": 256, "rope_theta": 1e6,
        "intermediate_size": 10240, "n_routed_experts": 64, "num_experts_per_tok": 4, "moe_intermediate_size": 1536,
        "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
        "routed_scaling_factor": 1.8, "norm_topk_prob": True, "num_nextn_predict_layers": 0,
    },
    "openPangu-2.0-Flash": KNOWN["openpangu-2.0-flash"],
}  # fmt: skip
DRAFTING = "mtp_num_hidden_layers", "num_nextn_predict_layers"  # whichever a model has
EXACT = "_conv", "ffn_gate_inp", "mhc", "param_sink"  # in names of tensors in float32
TYPES = {
    int: GGUFValueType.UINT32,
    float: GGUFValueType.FLOAT32,
    bool: GGUFValueType.BOOL,
    list: GGUFValueType.ARRAY,
}
MARKS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
Shapes = dict[str, tuple[int, ...]]


def cut(raw: Mapping[str, Any], layers: int | None, drafts: bool) -> dict[str, Any]:
    """The fields with fewer layers, and perhaps without those that draft, which come after the others."""
    before = raw["num_hidden_layers"]
    count = layers or before
    found = {**raw, "num_hidden_layers": count}
    found |= {name: raw[name] * drafts for name in DRAFTING if name in raw}
    if "swa_layers" in raw:
        later = range(found["num_nextn_predict_layers"])
        places = {n: n for n in range(count)} | {before + n: count + n for n in later}
        windows = dict(zip(raw["swa_layers"], raw["sliding_window_list"], strict=True))
        found["sliding_window_list"] = [w for n, w in windows.items() if n in places]
        for name in ("swa_layers", "dsa_layers", "block_post_layernorm_idx"):
            found[name] = [places[n] for n in raw[name] if n in places]
    return found


def tensors(config: ModelConfig) -> Shapes:
    """Shapes by name in the file, the experts of a layer in one tensor."""
    names, last, found = family_of(config.architecture).gguf, len(config.layers), Shapes()
    assert names is not None
    layer = {
        place: name for name, place in (*names.layer.items(), *{**GGUF_TOP, **names.top}.items())
    }
    experts = config.routed.experts if config.routed else 0
    whole = {place: f"blk.{last}.{name}" for name, place in names.drafts.items()}
    for name, shape in (tensor_shapes(config) | mtp_shapes(config)).items():
        place = re.sub(r"^mtp\.layers\.0", f"model.layers.{last}", name).removesuffix(".weight")
        block = re.match(r"model\.layers\.(\d+)\.(.*)", re.sub(r"experts\.\d+", "experts.*", place))
        at, inner = (f"blk.{block[1]}.", block[2]) if block else ("", place)
        ending = ".weight" if name.endswith(".weight") else ""
        if inner == "self_attn.kv_b_proj":  # keys turned over, and values
            of = config.layers[0].mixer
            assert isinstance(of, LatentAttention)
            found[f"{at}attn_k_b{ending}"] = of.heads, of.latent, of.nope
            found[f"{at}attn_v_b{ending}"] = of.heads, of.value_dim, of.latent
        elif name in whole or inner in layer:
            shape = (experts, *shape) if "*" in inner else shape
            found[whole.get(name) or f"{at}{layer[inner]}{ending}"] = shape
    for name in [name for name in found if "gate_exps" in name] * (names.architecture == "gemma4"):
        count, inner, hidden = found.pop(name)  # gates above ups
        del found[name.replace("gate", "up")]
        found[name.replace("gate", "gate_up")] = count, 2 * inner, hidden
    return found


def blocks(name: str, shape: tuple[int, ...], kind: Kind) -> NDArray[Any]:
    """Random blocks whose numbers are about as large as a trained model's; the same few, again and again."""
    draws, spread = np.random.default_rng(0), shape[-1] ** -0.5
    if name == "rope_freqs.weight":  # a quarter of the pairs turns
        return np.where(np.arange(shape[0]) < shape[0] // 4, 1, 1e30).astype(np.float32)
    if kind is Kind.F32:
        fill = np.full(shape, -1 if name.endswith("ssm_a") else 1, np.float32)
        return fill if len(shape) < 2 else draws.normal(0, spread, shape).astype(np.float32)
    inputs, size = GGML_QUANT_SIZES[kind]
    some = draws.integers(0, 256, (min(prod(shape) // inputs, 1 << 17), size), dtype=np.uint8)
    levels = {"Q4_K": 155, "Q5_K": 310, "Q6_K": 1150, "Q8_0": 74}.get(kind.name, 4.6)
    factors = 1, -7.5 if kind is Kind.Q4_1 else 7.5
    for at, factor in zip(SCALES[kind.name], factors, strict=False):
        some[:, at : at + 2] = np.array([factor * spread / levels], np.float16).view(np.uint8)
    return np.resize(some, (*shape[:-1], shape[-1] // inputs * size))


def own_fields(arch: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Header fields that stand for no single field of config.json."""
    if arch == "gemma4":
        windows = [n % 6 != 5 for n in range(raw["num_hidden_layers"])]
        heads = raw["num_key_value_heads"]
        others = raw.get("num_global_key_value_heads", heads)
        return {
            "attention.sliding_window_pattern": windows,
            "attention.head_count_kv": [heads if window else others for window in windows],
            "attention.value_length": raw["global_head_dim"],
            "attention.value_length_swa": raw["head_dim"],
            "rope.dimension_count": raw["global_head_dim"],
            "rope.dimension_count_swa": raw["head_dim"],
            "rope.freq_base_swa": 1e4,
        }
    if arch in ("deepseek2", "openpangu"):
        own = {"expert_gating_func": int(ExpertGatingFuncType.SIGMOID)}
        nope, rope = raw["qk_nope_head_dim"], raw["qk_rope_head_dim"]
        if arch == "openpangu":
            return own | {"attention.key_length": nope + rope}
        return own | {
            "attention.head_count_kv": 1,
            "attention.key_length": raw["kv_lora_rank"] + rope,
            "attention.value_length": raw["kv_lora_rank"],
            "attention.key_length_mla": nope + rope,
            "attention.value_length_mla": raw["v_head_dim"],
        }
    if arch == "llama":
        return {}
    return {
        "ssm.inner_size": raw["linear_num_value_heads"] * raw["linear_value_head_dim"],
        "rope.dimension_count": 64,
        "rope.dimension_sections": [11, 11, 10, 0],
        "attention.value_length": raw["head_dim"],
    }


def add_header(writer: GGUFWriter, raw: Mapping[str, Any], known: Mapping[str, str]) -> None:
    fields = {key: raw[field] for key, field in known.items() if raw.get(field) is not None}
    drafts = sum(raw.get(name, 0) for name in DRAFTING)
    fields |= {"block_count": raw["num_hidden_layers"] + drafts} | own_fields(writer.arch, raw)
    for key, value in {"attention.layer_norm_rms_epsilon": 1e-6, **fields}.items():
        writer.add_key_value(f"{writer.arch}.{key}", value, TYPES[type(value)])
    tokens = [*MARKS, *sorted(ByteLevel.alphabet()), "he", "Ġt"]
    count = raw["vocab_size"] - len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen35")
    writer.add_token_list([*tokens, *(f"[PAD{n}]" for n in range(count))])
    kinds = [TokenType.CONTROL] * len(MARKS) + [TokenType.NORMAL] * (len(tokens) - len(MARKS))
    writer.add_token_types(kinds + [TokenType.UNUSED] * count)
    writer.add_token_merges(["h e", "Ġ t"])
    writer.add_eos_token_id(2)
    writer.add_chat_template(TURNS + "<|im_start|>assistant\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--type", choices=sorted(SCALES), default="Q4_1")
    parser.add_argument("--head", choices=sorted(SCALES), default="Q6_K")
    parser.add_argument("--layers", type=int, help="fewer than the model has")
    parser.add_argument("--no-mtp", action="store_true")
    args = parser.parse_args()
    raw = cut(MODELS[args.model], args.layers, not args.no_mtp)
    names = family_of(raw["architectures"][0]).gguf
    assert names is not None
    config = ModelConfig.from_json({**names.given, **raw})
    writer = GGUFWriter(args.out, names.architecture)
    add_header(writer, raw, {**GGUF_FIELDS, **names.fields})
    every, known = dict[str, tuple[tuple[int, ...], Kind]](), tensors(config)
    if "global_head_dim" in raw:
        known["rope_freqs.weight"] = (raw["global_head_dim"] // 2,)
    for name, whole in known.items():
        shape = tuple(n for n in whole if n > 1) or (1,)
        exact = len(shape) < 2 or any(part in name for part in EXACT)
        usual = Kind[args.head if shape[0] == config.vocab_size else args.type]
        if shape[-1] % GGML_QUANT_SIZES[usual][0]:
            usual = Kind.Q5_0  # as llama.cpp's own files have it
        every[name] = shape, (kind := Kind.F32 if exact else usual)
        stored = quant_shape_to_byte_shape(shape, kind)
        writer.add_tensor_info(name, stored, np.dtype(np.uint8), prod(stored), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, facts in every.items():
        writer.write_tensor_data(blocks(name, *facts))
    writer.close()


if __name__ == "__main__":
    main()
