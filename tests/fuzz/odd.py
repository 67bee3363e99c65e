"""Whole checkpoints of odd sizes: nothing in them is damaged, and most of it was never tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import checkpoints
import head_tools
import torch
from safetensors.torch import save_file
from tokenizers_tiny import write_bpe

HEADS = ((1, 1), (2, 1), (6, 2), (3, 3), (64, 1), (65, 1), (130, 1), (128, 2), (256, 1))
SCALINGS: tuple[dict[str, Any] | None, ...] = (
    None,
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
     "original_max_position_embeddings": 32},
)  # fmt: skip


SIZES: dict[str, Sequence[Any]] = {
    "head_dim": (4, 6, 8, 16, 18, 64, 130),
    "hidden_size": (1, 4, 31, 32, 33, 36, 64, 100),
    "num_hidden_layers": (1, 2, 3),
    "intermediate_size": (1, 3, 32, 33, 100),
    "max_position_embeddings": (16, 40, 100, 128, 4096),
    "vocab": (1, 2, 9, 63, 320, 320, 321, 1000),
    "torch_dtype": ("float32", "bfloat16", "bfloat16", "float16", "float64"),
    "tie_word_embeddings": (True, True, False, False, False),
    "rope_scaling": SCALINGS,
    "seed": range(1000),
}
EXPERTS: dict[str, Sequence[Any]] = {
    "moe_intermediate_size": (1, 16, 33),
    "shared_expert_intermediate_size": (1, 32, 40),
    "mlp_only_layers": ([], [0]),
}


def odd_model(folder: Path, random: Random) -> Path:
    """A MoGE, dense or openPangu Embedded model."""
    fields: dict[str, Any] = {name: random.choice(sizes) for name, sizes in SIZES.items()}
    fields["num_attention_heads"], fields["num_key_value_heads"] = random.choice(HEADS)
    fields["eos_token_id"] = min(2, fields["vocab"] - 1)
    if random.random() < 0.5:
        groups = random.choice((1, 2, 3))
        fields |= {name: random.choice(sizes) for name, sizes in EXPERTS.items()}
        fields["num_experts_per_tok"] = groups
        fields["num_experts"] = groups * random.choice((1, 2, 5, 40))
        checkpoints.write_moge(folder, sharded=False, **fields)
    else:
        family = random.choice(("LlamaForCausalLM", "PanguEmbeddedForCausalLM"))
        checkpoints.write_dense(folder, family, **fields)
    if fields["vocab"] >= 320:
        write_bpe(folder)
    return folder


def odd_head(folder: Path, random: Random) -> None:
    """A draft head of odd sizes for a usual model."""
    dtype = random.choice(("float32", "bfloat16"))
    checkpoints.write_dense(folder, vocab=320, hidden_size=32, torch_dtype=dtype)
    write_bpe(folder)
    made, weights = head_tools.tiny_weights(folder, random.choice(((0,), (1,), (0, 1), (1, 0))), 10)
    heads, kv_heads = random.choice(HEADS)
    config = replace(
        made,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=random.choice((2, 4, 6, 16, 18, 64)),
        neurons=random.choice((1, 31, 32, 48)),
        window=random.choice((1, 2, 16, 512, 512, 512, 2**31 - 1, 2**31)),
        prompt=random.choice((0, 1, 7, 7, 1024, 1024, 2**63)),
        rope_theta=random.choice((1e-300, 1.0, 1e4, 1e308)),
        eps=random.choice((1e-300, 1e-5, 1e308)),
    )
    draws = torch.Generator().manual_seed(random.randrange(1000))
    for name, shape in config.shapes().items():
        if weights[name].shape != shape:
            weights[name] = torch.randn(shape, generator=draws) * 0.2
    tokens = weights["tokens"] = weights["tokens"].long()
    if random.random() < 0.4:
        wrong = (-1, -(2**31), int(tokens[0]), 319, 320, 2**31, 2**62)
        tokens[random.randrange(len(tokens))] = random.choice(wrong)
    save_file(weights, folder / "draft_head.safetensors", config.metadata())
