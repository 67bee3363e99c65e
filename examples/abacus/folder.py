"""The folder of a model: its tokenizer, its weights under their official names, its presets.

The tokenizer has digits one by one, openPangu's marks, the words of the tasks, and bytes for the rest.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import sentencepiece
from safetensors.torch import save_file
from torch import Tensor

from abacus.moge import Shape
from abacus.tasks import Mix

MARKS = [f"[unused{n}]" for n in range(9, 18)]
NAMES = ["系统：", "用户：", "助手：", "工具："]
SWITCHES = ["▁/no_think", "▁/auto_think"]


def train_tokenizer(mix: Mix, seed: int = 0, count: int = 20000) -> bytes:
    """A SentencePiece model, trained on the prompts of `count` tasks."""
    rng = Random(f"words {seed}")
    prompts: Iterator[str] = (mix.draw(rng).prompt for _ in iter(int, 1))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=islice(prompts, count),
        model_writer=model,
        vocab_size=mix.shape.vocabulary,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        required_chars="+-*=<,;:()",
        user_defined_symbols=[*MARKS, *NAMES, *SWITCHES, *mix.words],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        minloglevel=2,
        num_threads=1,
    )
    return model.getvalue()


def presets(groups: int, few: int) -> dict[str, Any]:
    """fastslow.json."""
    fast = {
        "groups": few,
        "thinking": "off",
        "sampling": {"max_tokens": 32},
        "description": f"Answers at once, with {few} of the {groups} groups of experts.",
    }
    deep = {
        "groups": None,
        "thinking": "on",
        "sampling": {"max_tokens": 384},
        "description": f"Thinks first, step by step, with all {groups} groups of experts.",
    }
    return {"modes": {"fast": fast, "deep": deep}}


def official(weights: dict[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """The tensors of a checkpoint in bfloat16, from the parameters of a `Decoder`."""
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        base, _, last = name.rpartition(".")
        match last:
            case "lm_head":
                found["lm_head.weight"] = tensor
            case "embed_tokens":
                found["model.embed_tokens.weight"] = tensor
            case "gate":
                found[f"model.{base}.gate.weight"] = tensor
            case "router_scale":
                found[f"model.{name}"] = tensor.view(1, -1)
            case "gates" | "ups" | "downs":
                for n, expert in enumerate(tensor):
                    found[f"model.{base}.experts.{n}.{last.rstrip('s')}_proj.weight"] = expert
            case _:
                found[f"model.{name}"] = tensor
    return {name: tensor.bfloat16().contiguous() for name, tensor in found.items()}


def write_folder(
    folder: Path, weights: dict[str, Tensor], shape: Shape, tokenizer: bytes, end: int
) -> None:
    """config.json, model.safetensors, tokenizer.model and, of a mixture, the presets of its modes;
    `end` is the id that ends a turn."""
    folder.mkdir(parents=True, exist_ok=True)
    config = shape.config() | {"eos_token_id": end}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text('{"do_sample": false}\n')
    if shape.groups:
        text = json.dumps(presets(shape.groups, shape.fast), indent=2) + "\n"
        (folder / "fastslow.json").write_text(text)
    (folder / "tokenizer.model").write_bytes(tokenizer)
    save_file(official(weights, shape), folder / "model.safetensors", {"format": "pt"})
