"""The table of running states in docs/sizing.md is what the code reckons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastslow.engine.kv import budget
from fastslow.engine.kv.budget import page_budget
from fastslow.engine.model.config import ModelConfig

PAGE = Path(__file__).parents[3] / "docs" / "sizing.md"
CONTEXT = 32768
# hidden size, layers, heads, KV heads, value heads of gated delta nets
SIZES = {
    "Qwen3.5-0.8B": (1024, 24, 8, 2, 16), "Qwen3.5-4B": (2560, 32, 16, 4, 32), "Qwen3.5-9B": (4096, 32, 16, 4, 32),
    "Qwen3.5-27B": (5120, 64, 24, 4, 48), "Qwen3.5-35B-A3B": (2048, 40, 16, 2, 32),
}  # fmt: skip


def layout_of(size: tuple[int, ...]) -> Any:
    hidden, layers, heads, kv_heads, values = size
    config: dict[str, Any] = {"architectures": ["Qwen3_5ForCausalLM"], "vocab_size": 320, "intermediate_size": 32}
    config |= {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "head_dim": 256}
    config |= {"num_key_value_heads": kv_heads, "linear_num_key_heads": 16, "linear_num_value_heads": values}
    config |= {"linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4}
    config |= {"rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": CONTEXT}
    config |= {"tie_word_embeddings": True, "mtp_num_hidden_layers": 0}
    config |= {"layer_types": ["full_attention" if n % 4 == 3 else "linear_attention" for n in range(layers)]}
    config |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25}}
    return ModelConfig.from_json(config).state_layout


def rows() -> list[str]:
    """Of both tables."""
    sizes, budgets = [], []
    for name, size in SIZES.items():
        layout, dtype = layout_of(size), torch.bfloat16
        state, row = layout.snapshot_bytes(dtype), layout.row_bytes(dtype)
        request, token = layout.request_bytes(dtype), layout.token_bytes(dtype)
        sizes.append(
            f"| {name} | {state / 1e6:.1f} MB | {row / 1e6:.2f} MB | {request / 1e6:.1f} MB | {token / 1e3:.1f} kB |"
        )
        each = []
        for memory in (4, 16, 64):
            found = page_budget(
                memory * 10**9, page_bytes=16 * token, page_size=16, context=CONTEXT, max_requests=64, device="cpu",
                request_bytes=request, snapshot_bytes=state,
            )  # fmt: skip
            each.append(f"{found.places}, {found.snapshots}, {16 * found.pages:,}")
        budgets.append(f"| {name} | {' | '.join(each)} |")
    return sizes + budgets


def test_the_table_is_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "whole_memory", lambda device: 1 << 40)
    lines = PAGE.read_text("utf-8").splitlines()
    assert not [row for row in rows() if row not in lines]
