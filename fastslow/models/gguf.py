"""A GGUF file becomes a checkpoint folder: its tensors, its config and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

from fastslow.engine.host.files import no_panic, shown
from fastslow.engine.model.checkpoint import BLOCKS
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.families import llama
from fastslow.engine.model.fields import boolean, integer, number, text
from fastslow.engine.model.tensors import tensor_shapes
from fastslow.models.dense import OFFICIAL
from fastslow.models.folder import fresh_folder, require_vacant, write_json
from fastslow.models.gguf_file import GgufFile, GgufTensor

LINEAR_NAMES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **dict(zip(LINEAR_NAMES, OFFICIAL.values())),
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
SKIPPED = "rope_freqs.weight"  # they follow from the header
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
    raise ValueError(f"gguf tensor {shown(name)} has no place in a llama checkpoint")


def config_json(meta: dict[str, Any], tied: bool) -> dict[str, Any]:
    """config.json of the dense model. ValueError if the file holds no llama model."""
    arch = text(meta, "general.architecture", default=None)
    if arch != "llama":
        raise ValueError(f"gguf general.architecture must be 'llama', got {shown(arch)}")
    heads, kv_heads = _heads(meta)
    hidden, vocab = integer(meta, "llama.embedding_length"), len(_tokens(meta))
    last = vocab - 1
    epsilon = number(meta, "llama.attention.layer_norm_rms_epsilon")
    return {
        "architectures": [*llama.FAMILY.architectures],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": integer(meta, "llama.feed_forward_length"),
        "num_hidden_layers": integer(meta, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "max_position_embeddings": integer(meta, "llama.context_length"),
        "rope_theta": number(meta, "llama.rope.freq_base", 10000.0),
        "rms_norm_eps": float(f"{epsilon:.6g}"),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": _id(meta, "bos_token_id", last),
        "eos_token_id": _id(meta, "eos_token_id", last),
        "pad_token_id": _id(meta, "padding_token_id", last, 0),
        "torch_dtype": "bfloat16",
    }


def _heads(meta: dict[str, Any]) -> tuple[int, int]:
    """Query heads and KV heads."""
    heads = integer(meta, "llama.attention.head_count")
    return heads, integer(meta, "llama.attention.head_count_kv", heads)


def _tokens(meta: dict[str, Any]) -> list[str]:
    return _texts(meta, "tokenizer.ggml.tokens")


def _texts(meta: dict[str, Any], name: str) -> list[str]:
    found = meta.get(name)
    if not isinstance(found, list) or not found or not all(isinstance(x, str) for x in found):
        raise ValueError(f"{name} {shown(found)} must be a list of texts")
    return found


def _id(meta: dict[str, Any], name: str, last: int, default: int | None = None) -> int:
    return integer(meta, f"tokenizer.ggml.{name}", default, least=0, most=last)


def _check_shapes(tensors: list[GgufTensor], config: dict[str, Any]) -> None:
    """ValueError unless the tensors are those of the model."""
    expected = tensor_shapes(ModelConfig.from_json(config))
    for tensor in tensors:
        name = official_name(tensor.name)
        if (shape := expected.pop(name, None)) is None:
            raise ValueError(f"gguf tensor {tensor.name:.99} is not one of the model")
        if tensor.shape != shape:
            raise ValueError(
                f"gguf tensor {tensor.name:.99} has shape {list(tensor.shape)}, but the header asks for "
                f"{list(shape)}"
            )
    if expected:
        raise ValueError(f"the file lacks tensor {next(iter(expected))}")


def dense_tensors(
    tensors: list[GgufTensor], meta: dict[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor dequantised to bfloat16 under its Hugging Face name."""
    for tensor in tensors:
        name = official_name(tensor.name)
        weight = torch.from_numpy(dequantize(tensor.data, tensor.kind).copy())
        yield name, _reordered(name, weight, meta).to(torch.bfloat16)


def _reordered(name: str, rows: torch.Tensor, meta: dict[str, Any]) -> torch.Tensor:
    """Rows of q and k in half-split order, others as they are."""
    counts = dict(zip(("q_proj", "k_proj"), _heads(meta)))
    projection = name.split(".")[-2]
    return half_split(rows, counts[projection]) if projection in counts else rows


def q4_1_blocks(tensors: list[GgufTensor], meta: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The 4-bit matrices of the layers, still packed: uint8 [outputs, inputs / 32 * 20].

    A block is 32 inputs: scale and minimum in float16, then 16 bytes, whose low halves are
    inputs 0 to 15. Rows of q and k are in half-split order, as in the dequantised weights.
    """
    q4_1 = GGMLQuantizationType.Q4_1
    packed = [t for t in tensors if t.kind is q4_1 and t.name.startswith("blk.")]
    named = [(official_name(t.name), torch.from_numpy(t.data.copy())) for t in packed]
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
    file = GgufFile.read(gguf)
    meta, tensors = file.fields, [tensor for tensor in file.tensors if tensor.name != SKIPPED]
    try:
        config = config_json(meta, tied=all(t.name != "output.weight" for t in tensors))
        _check_shapes(tensors, config)
        _write(out, meta, tensors, config)
    except ValueError as error:
        raise ValueError(f"{gguf}: {error}") from None
    return out


def _write(
    out: Path, meta: dict[str, Any], tensors: list[GgufTensor], config: dict[str, Any]
) -> None:
    with fresh_folder(out) as folder:
        write_tokenizer(meta, folder)
        weights = folder / "model.safetensors"
        with no_panic(weights, NotImplementedError):  # a type that the library does not know
            save_file(dict(dense_tensors(tensors, meta)), weights, {"format": "pt"})
        if blocks := q4_1_blocks(tensors, meta):
            save_file(blocks, folder / BLOCKS)
        write_json(folder / "config.json", config)
        ids = ("bos_token_id", "eos_token_id", "pad_token_id")
        write_json(folder / "generation_config.json", {name: config[name] for name in ids})


def pre_tokenizer(name: str) -> PreTokenizer:
    """The splitting rule of a GGUF `tokenizer.ggml.pre` name; ValueError if unknown."""
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_bytes])
    if name in ("gpt-2", "gpt2", "default"):
        return by_bytes
    raise ValueError(f"gguf tokenizer.ggml.pre must be 'smollm' or 'gpt-2', got {shown(name)}")


def build_tokenizer(meta: dict[str, Any]) -> Tokenizer:
    """Byte-level BPE tokenizer from GGUF metadata; control tokens become special tokens."""
    model = text(meta, "tokenizer.ggml.model", default=None)
    if model != "gpt2":
        raise ValueError(f"gguf tokenizer.ggml.model must be 'gpt2', got {shown(model)}")
    tokens, kinds = _tokens(meta), meta.get("tokenizer.ggml.token_type")
    if not isinstance(kinds, np.ndarray) or len(kinds) != len(tokens):
        raise ValueError(
            f"tokenizer.ggml.token_type {shown(kinds)} must be a list of {len(tokens)} numbers"
        )
    pairs = []
    for merge in _texts(meta, "tokenizer.ggml.merges"):
        first, space, second = merge.partition(" ")
        if not space:
            raise ValueError(f"tokenizer.ggml.merges: {shown(merge)} must have a space in it")
        pairs.append((first, second))
    vocab = {token: index for index, token in enumerate(tokens)}
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise ValueError(f"tokenizer.ggml.merges: {error!s:.99}") from None
    tokenizer.pre_tokenizer = pre_tokenizer(text(meta, "tokenizer.ggml.pre", None) or "default")
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        AddedToken(token, special=True, normalized=False)
        for token, kind in zip(tokens, kinds.tolist())
        if kind == CONTROL
    ]
    tokenizer.add_special_tokens(special)
    return tokenizer


def write_tokenizer(meta: dict[str, Any], folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja (if there is one)."""
    build_tokenizer(meta).save(str(folder / "tokenizer.json"))
    tokens = _tokens(meta)
    last = len(tokens) - 1
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": boolean(meta, "tokenizer.ggml.add_bos_token", False),
        "bos_token": tokens[_id(meta, "bos_token_id", last)],
        "eos_token": tokens[_id(meta, "eos_token_id", last)],
        "model_max_length": integer(meta, "llama.context_length"),
        "clean_up_tokenization_spaces": False,
    }
    for field, key in (("unk_token", "unknown_token_id"), ("pad_token", "padding_token_id")):
        if meta.get(f"tokenizer.ggml.{key}") is not None:
            config[field] = tokens[_id(meta, key, last)]
    template = text(meta, "tokenizer.chat_template", default=None)
    if template:
        config["chat_template"] = template
        (folder / "chat_template.jinja").write_text(template, "utf-8")
    write_json(folder / "tokenizer_config.json", config)
