"""A GGUF file becomes a checkpoint folder: its tensors, its config and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType, GGUFReader, dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

from fastslow.engine.model.checkpoint import BLOCKS
from fastslow.engine.model.config import LLAMA
from fastslow.models.dense import OFFICIAL
from fastslow.models.folder import fresh_folder, require_vacant, write_json

LINEAR_NAMES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **dict(zip(LINEAR_NAMES, OFFICIAL.values())),
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
CONTROL = 3  # gguf token type of a special token


def half_split(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a q or k projection [heads * head_dim, ...] from interleaved to half-split rotary pairs.

    A GGUF of the llama family stores each head's rows as pairs (2i, 2i+1); Hugging Face checkpoints
    rotate row i against row i + head_dim/2. `heads` are those of the weight (the KV heads for k).
    """
    pairs = weight.reshape(heads, -1, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape).contiguous()


def official_name(name: str) -> str:
    """Hugging Face name of a GGUF llama tensor; ValueError for a tensor llama does not have."""
    stem, _, kind = name.rpartition(".")
    if stem in TOP_NAMES:
        return f"{TOP_NAMES[stem]}.{kind}"
    parts = stem.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in LAYER_NAMES:
        return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.{kind}"
    raise ValueError(f"gguf tensor {name!r} has no place in a llama checkpoint")


def config_json(meta: dict[str, Any], tied: bool) -> dict[str, Any]:
    """config.json of the dense model. ValueError if the file holds no llama model."""
    arch = meta.get("general.architecture")
    if arch != "llama":
        raise ValueError(f"gguf general.architecture must be 'llama', got {arch!r}")
    heads, kv_heads = _heads(meta)
    hidden = int(meta["llama.embedding_length"])
    return {
        "architectures": [LLAMA],
        "model_type": "llama",
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "hidden_size": hidden,
        "intermediate_size": int(meta["llama.feed_forward_length"]),
        "num_hidden_layers": int(meta["llama.block_count"]),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "max_position_embeddings": int(meta["llama.context_length"]),
        "rope_theta": float(meta.get("llama.rope.freq_base", 10000.0)),
        "rms_norm_eps": float(f"{meta['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": int(meta["tokenizer.ggml.bos_token_id"]),
        "eos_token_id": int(meta["tokenizer.ggml.eos_token_id"]),
        "pad_token_id": int(meta.get("tokenizer.ggml.padding_token_id", 0)),
        "torch_dtype": "bfloat16",
    }


def _heads(meta: dict[str, Any]) -> tuple[int, int]:
    """Query heads and KV heads."""
    heads = int(meta["llama.attention.head_count"])
    return heads, int(meta.get("llama.attention.head_count_kv", heads))


def dense_tensors(reader: GGUFReader, meta: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor dequantised to bfloat16 under its Hugging Face name."""
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        name = official_name(tensor.name)
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        yield name, _reordered(name, weight, meta).to(torch.bfloat16)


def _reordered(name: str, rows: torch.Tensor, meta: dict[str, Any]) -> torch.Tensor:
    """Rows of q and k in half-split order, others as they are."""
    counts = dict(zip(("q_proj", "k_proj"), _heads(meta)))
    projection = name.split(".")[-2]
    return half_split(rows, counts[projection]) if projection in counts else rows


def q4_1_blocks(reader: GGUFReader, meta: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The 4-bit matrices of the layers, still packed: uint8 [outputs, inputs / 32 * 20].

    A block is 32 inputs: scale and minimum in float16, then 16 bytes of which the low halves are
    inputs 0 to 15. Rows of q and k are in half-split order, as in the dequantised weights.
    """
    q4_1 = GGMLQuantizationType.Q4_1
    tensors = [t for t in reader.tensors if t.tensor_type is q4_1 and t.name.startswith("blk.")]
    named = [(official_name(t.name), torch.from_numpy(t.data.copy())) for t in tensors]
    return {name: _reordered(name, raw, meta) for name, raw in named}


def gguf_to_dense(gguf: Path, out: Path) -> Path:
    """Write a llama GGUF as a dense Hugging Face folder.

    Args:
        gguf: the file; any quantisation the gguf library can dequantise.
        out: folder to create; it appears only when complete.

    Returns:
        `out`, with config.json, generation_config.json, model.safetensors (bfloat16),
        tokenizer.json, tokenizer_config.json and chat_template.jinja; where the file has layers in
        Q4_1, q4_1.safetensors holds their 4-bit blocks, which int4 runs as they are.

    Raises:
        ValueError: the file is no llama model or holds a tensor llama does not have; `out` is not vacant.
    """
    require_vacant(out)
    reader = GGUFReader(gguf)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    names = {tensor.name for tensor in reader.tensors}
    config = config_json(meta, tied="output.weight" not in names)
    with fresh_folder(out) as folder:
        save_file(dict(dense_tensors(reader, meta)), folder / "model.safetensors", {"format": "pt"})
        if blocks := q4_1_blocks(reader, meta):
            save_file(blocks, folder / BLOCKS)
        write_json(folder / "config.json", config)
        ids = ("bos_token_id", "eos_token_id", "pad_token_id")
        write_json(folder / "generation_config.json", {name: config[name] for name in ids})
        write_tokenizer(meta, folder)
    return out


def pre_tokenizer(name: str) -> PreTokenizer:
    """The splitting rule behind a GGUF `tokenizer.ggml.pre` name; ValueError if unknown."""
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_bytes])
    if name in ("gpt-2", "gpt2", "default"):
        return by_bytes
    raise ValueError(f"gguf tokenizer.ggml.pre must be 'smollm' or 'gpt-2', got {name!r}")


def build_tokenizer(meta: dict[str, Any]) -> Tokenizer:
    """Byte-level BPE tokenizer from GGUF metadata; control tokens become special tokens."""
    if meta.get("tokenizer.ggml.model") != "gpt2":
        raise ValueError(
            f"gguf tokenizer.ggml.model must be 'gpt2', got {meta.get('tokenizer.ggml.model')!r}"
        )
    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in meta["tokenizer.ggml.merges"]]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizer(meta.get("tokenizer.ggml.pre", "default"))
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        AddedToken(token, special=True, normalized=False)
        for token, kind in zip(tokens, meta["tokenizer.ggml.token_type"], strict=True)
        if kind == CONTROL
    ]
    tokenizer.add_special_tokens(special)
    return tokenizer


def write_tokenizer(meta: dict[str, Any], folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja (if there is one)."""
    build_tokenizer(meta).save(str(folder / "tokenizer.json"))
    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(meta.get("tokenizer.ggml.add_bos_token", False)),
        "bos_token": tokens[meta["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[meta["tokenizer.ggml.eos_token_id"]],
        "model_max_length": int(meta["llama.context_length"]),
        "clean_up_tokenization_spaces": False,
    }
    for field, key in (("unk_token", "unknown_token_id"), ("pad_token", "padding_token_id")):
        index = meta.get(f"tokenizer.ggml.{key}")
        if index is not None:
            config[field] = tokens[index]
    template = meta.get("tokenizer.chat_template")
    if template:
        config["chat_template"] = template
        (folder / "chat_template.jinja").write_text(template)
    write_json(folder / "tokenizer_config.json", config)
