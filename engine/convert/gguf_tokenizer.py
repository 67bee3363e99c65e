from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

CONTROL = 3  # gguf token type of a special token


def pre_tokenizer(name: str) -> PreTokenizer:
    """The splitting rule behind a GGUF `tokenizer.ggml.pre` name; ValueError if unknown."""
    if name == "smollm":
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    if name in ("gpt-2", "gpt2", "default"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
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
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja (if there is one)."""
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
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
