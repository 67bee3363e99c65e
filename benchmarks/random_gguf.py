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
from gguf import GGML_QUANT_SIZES, ExpertGatingFuncType, GGUFWriter, TokenType
from gguf import GGMLQuantizationType as Kind
from gguf.quants import quant_shape_to_byte_shape
from numpy.typing import NDArray
from tokenizers.pre_tokenizers import ByteLevel

from fastslow.engine.checkpoint.gguf_shard import SCALES
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.family import GGUF_FIELDS, GGUF_TOP, family_of
from fastslow.engine.model.mixers.latent import LatentAttention
from fastslow.engine.model.tensors import mtp_shapes, tensor_shapes

FIELDS = (  # hidden, layers, heads, heads of keys, value heads of a delta net, ffn or expert
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("linear_num_value_heads", "intermediate_size"),
)
SHAPES = {
    "0.8B": (1024, 24, 8, 2, 16, 3584),
    "4B": (2560, 32, 16, 4, 32, 9216),
    "35B-A3B": (2048, 40, 16, 2, 32, 512),
}
USUAL = {
    "vocab_size": 248_320, "max_position_embeddings": 262_144, "head_dim": 256,
    "linear_num_key_heads": 16, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4, "full_attention_interval": 4,
}  # fmt: skip
LLAMA: dict[str, dict[str, Any]] = {  # fields of config.json
    "llama-135M": {
        "vocab_size": 49_152, "max_position_embeddings": 8192, "hidden_size": 576, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
    },
    "llama-1.2B": {
        "vocab_size": 128_256, "max_position_embeddings": 131_072, "hidden_size": 2048, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 8192,
    },
}  # fmt: skip
EXPERTS = {"num_experts": 256, "num_experts_per_tok": 8}
EXPERTS |= dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 512)
GEMMA: dict[str, dict[str, Any]] = {  # fields of config.json
    "gemma4-E4B": {
        "hidden_size": 2560, "num_hidden_layers": 42, "num_attention_heads": 8, "num_key_value_heads": 2,
        "intermediate_size": 10240, "sliding_window": 512, "num_kv_shared_layers": 18,
        "hidden_size_per_layer_input": 256,
    },
    "gemma4-26B-A4B": {
        "hidden_size": 2816, "num_hidden_layers": 30, "num_attention_heads": 16, "num_key_value_heads": 8,
        "intermediate_size": 2112, "sliding_window": 1024, "hidden_size_per_layer_input": 0, "num_experts": 128,
        "top_k_experts": 8, "moe_intermediate_size": 704, "enable_moe_block": True, "attention_k_eq_v": True,
        "num_global_key_value_heads": 2,
    },
}  # fmt: skip
EVERY_GEMMA = {
    "vocab_size": 262_144,
    "max_position_embeddings": 131_072,
    "head_dim": 256,
    "global_head_dim": 512,
}
GLM: dict[str, dict[str, Any]] = {
    "GLM-4.7-Flash": {
        "vocab_size": 154_880, "max_position_embeddings": 202_752, "hidden_size": 2048, "num_hidden_layers": 47,
        "num_attention_heads": 20, "q_lora_rank": 768, "kv_lora_rank": 512, "qk_nope_head_dim": 192,
        "qk_rope_head_dim": 64, "v_head_dim": 256, "intermediate_size": 10240, "n_routed_experts": 64,
        "num_experts_per_tok": 4, "moe_intermediate_size": 1536, "n_shared_experts": 1, "first_k_dense_replace": 1,
        "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.8, "norm_topk_prob": True,
        "num_nextn_predict_layers": 0,
    },
}  # fmt: skip
PANGU: dict[str, dict[str, Any]] = {
    "openPangu-2.0-Flash": {
        "vocab_size": 151_552, "max_position_embeddings": 524_288, "hidden_size": 2560, "num_hidden_layers": 46,
        "num_attention_heads": 48, "q_lora_rank": 1024, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 9216, "n_routed_experts": 256,
        "num_experts_per_tok": 8, "moe_intermediate_size": 1024, "n_shared_experts": 1, "first_k_dense_replace": 2,
        "routed_scaling_factor": 2.5, "norm_topk_prob": True, "param_sink_number": 128, "router_sliding_window": 3,
        "mhc_num_stream": 4, "mhc_recur_norm": 20, "block_post_layernorm_idx": [0, *range(4, 40, 5)],
        "index_topk": 2048, "index_n_heads": 24, "index_head_dim": 128,
    },
}  # fmt: skip
MARKS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
Shapes = dict[str, tuple[int, ...]]


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


def add_header(writer: GGUFWriter, raw: Mapping[str, Any], known: Mapping[str, str]) -> None:
    for key, field in known.items():
        if type(raw.get(field)) is int and key not in ("block_count", "attention.head_count_kv"):
            writer.add_uint32(f"{writer.arch}.{key}", raw[field])
    drafts = (raw.get(f"{kind}_layers", 0) for kind in ("mtp_num_hidden", "num_nextn_predict"))
    writer.add_block_count(raw["num_hidden_layers"] + sum(drafts))
    {
        "llama": add_llama,
        "gemma4": add_gemma,
        "deepseek2": add_latent,
        "openpangu": add_pangu,
    }.get(writer.arch, add_qwen)(writer, raw)
    writer.add_layer_norm_rms_eps(1e-6)
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


def add_llama(writer: GGUFWriter, raw: Mapping[str, Any]) -> None:
    writer.add_head_count_kv(raw["num_key_value_heads"])
    writer.add_rope_freq_base(5e5)


def add_qwen(writer: GGUFWriter, raw: Mapping[str, Any]) -> None:
    writer.add_head_count_kv(raw["num_key_value_heads"])
    writer.add_ssm_inner_size(raw["linear_num_value_heads"] * raw["linear_value_head_dim"])
    writer.add_rope_dimension_count(64)
    writer.add_value_length(raw["head_dim"])
    writer.add_rope_dimension_sections([11, 11, 10, 0])
    writer.add_rope_freq_base(1e7)


def add_gemma(writer: GGUFWriter, raw: Mapping[str, Any]) -> None:
    windows, heads = (
        [n % 6 != 5 for n in range(raw["num_hidden_layers"])],
        raw["num_key_value_heads"],
    )
    others = raw.get("num_global_key_value_heads", heads)
    writer.add_sliding_window_pattern(windows)
    writer.add_head_count_kv([heads if window else others for window in windows])
    for dim, ending in ((raw["global_head_dim"], ""), (raw["head_dim"], "_swa")):
        writer.add_uint32(f"{writer.arch}.attention.value_length{ending}", dim)
        writer.add_uint32(f"{writer.arch}.rope.dimension_count{ending}", dim)
    writer.add_rope_freq_base(1e6)
    writer.add_rope_freq_base_swa(1e4)
    writer.add_final_logit_softcapping(30.0)


def add_latent(writer: GGUFWriter, raw: Mapping[str, Any]) -> None:
    writer.add_head_count_kv(1)
    writer.add_key_length(raw["kv_lora_rank"] + raw["qk_rope_head_dim"])
    writer.add_value_length(raw["kv_lora_rank"])
    writer.add_key_length_mla(raw["qk_nope_head_dim"] + raw["qk_rope_head_dim"])
    writer.add_value_length_mla(raw["v_head_dim"])
    writer.add_expert_weights_scale(raw["routed_scaling_factor"])
    writer.add_expert_weights_norm(raw["norm_topk_prob"])
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    writer.add_rope_freq_base(1e6)


def add_pangu(writer: GGUFWriter, raw: Mapping[str, Any]) -> None:
    writer.add_head_count_kv(raw["num_attention_heads"])
    writer.add_key_length(raw["qk_nope_head_dim"] + raw["qk_rope_head_dim"])
    writer.add_expert_weights_scale(raw["routed_scaling_factor"])
    writer.add_expert_weights_norm(raw["norm_topk_prob"])
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    writer.add_rope_freq_base(6.4e6)
    for name in ("swa_layers", "sliding_window_list"):
        writer.add_array(f"{writer.arch}.{name}", raw[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", choices=[*LLAMA, *SHAPES, *GEMMA, *GLM, *PANGU])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--type", choices=sorted(SCALES), default="Q4_1")
    parser.add_argument("--head", choices=sorted(SCALES), default="Q6_K")
    parser.add_argument("--layers", type=int, help="fewer than the model has")
    parser.add_argument("--no-mtp", action="store_true")
    args = parser.parse_args()
    mixed, gemma = "A3B" in args.model, args.model in GEMMA
    architecture = "Gemma4ForCausalLM" if gemma else f"Qwen3_5{'Moe' * mixed}ForCausalLM"
    architecture = "LlamaForCausalLM" if args.model in LLAMA else architecture
    architecture = "DeepseekV3ForCausalLM" if args.model in GLM else architecture
    architecture = "OpenPanguV2ForCausalLM" if args.model in PANGU else architecture
    names = family_of(architecture).gguf
    assert names is not None
    if gemma:
        raw = EVERY_GEMMA | GEMMA[args.model]
    elif args.model in LLAMA:
        raw = LLAMA[args.model] | {"tie_word_embeddings": True}
    elif args.model in GLM | PANGU:
        raw = dict((GLM | PANGU)[args.model])
    else:
        raw = dict(zip(FIELDS, SHAPES[args.model])) | USUAL | (EXPERTS if mixed else {})
        raw |= {
            **names.given,
            "mtp_num_hidden_layers": int(not args.no_mtp),
            "tie_word_embeddings": not mixed,
        }
    raw["num_hidden_layers"] = args.layers or raw["num_hidden_layers"]
    if args.model in PANGU:
        count, drafts = raw["num_hidden_layers"], 0 if args.no_mtp else 3
        seen = {n: 512 if n < count else 2048 for n in range(count + drafts) if n % 3 or n >= count}
        normed = [n for n in raw["block_post_layernorm_idx"] if n < count]
        raw |= {"swa_layers": [*seen], "sliding_window_list": [*seen.values()]}
        raw |= {"block_post_layernorm_idx": normed, "num_nextn_predict_layers": drafts}
    config = ModelConfig.from_json(raw | {"architectures": [architecture]})
    writer = GGUFWriter(args.out, names.architecture)
    add_header(writer, raw, {**GGUF_FIELDS, **names.fields})
    every, known = dict[str, tuple[tuple[int, ...], Kind]](), tensors(config)
    if gemma:
        known["rope_freqs.weight"] = (raw["global_head_dim"] // 2,)
    for name, whole in known.items():
        shape = tuple(n for n in whole if n > 1) or (1,)
        exact = len(shape) < 2 or "ssm_conv1d" in name or "ffn_gate_inp" in name
        exact |= (
            "mhc" in name
            or "a_conv" in name
            or "o_conv" in name
            or "kv_conv" in name
            or "param_sink" in name
        )
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
