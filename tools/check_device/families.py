"""A small random model of every family on a device, against plain torch in float64."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from fastslow.engine.backends.accelerator.decoder import PagedDecoder
from fastslow.engine.backends.loader import DTYPES, load_model
from fastslow.engine.model.base import Model, kv_cache_for
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.tensors import mtp_shapes, tensor_shapes
from fastslow.engine.rows import Rows
from fastslow.tools.check_device.finding import CheckPlan, Finding
from fastslow.tools.forward import chain

# Of the logits' own spread, on average. What a device does wrongly moves them by about all of it.
APART = {torch.bfloat16: 0.1, torch.float16: 0.06, torch.float32: 1e-3, torch.float64: 1e-3}
FIRST, LAST = 150, 20  # rows: longer than every window, and than a block of keys
SINGLE = 20  # steps of one row between them
COMMON: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
EXPERTS = {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 64}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
SHARED = {**EXPERTS, "shared_expert_intermediate_size": 64}
EXPERTS_BESIDE = {"enable_moe_block": True, "top_k_experts": 4, "num_experts_per_tok": None}
WINDOWED = {
    "sliding_window": 20,
    "sliding_window_pattern": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 512,
    "tie_word_embeddings": True,
    "rope_theta": None,
}
CONV = {"rms_norm_eps": None, "layer_types": ["conv", "full_attention", "conv", "conv"]}
FAMILIES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {},
    "PanguEmbeddedForCausalLM": {},
    "PanguProMoEForCausalLM": SHARED,
    "PanguProMoEV2ForCausalLM": {
        **SHARED,
        "qk_nope_dim": 32,
        "qk_rope_dim": 16,
        "v_channels": 32,
        "head_dim": None,
        "mlp_only_layers": [0],
        "router_enable_expert_bias": True,
        "sandwich_norm": True,
        "param_sink_number": 5,
        "param_sink_with_value": True,
    },
    "MistralForCausalLM": {"sliding_window": 140},
    "Qwen2ForCausalLM": {},
    "Qwen3ForCausalLM": {},
    "SmolLM3ForCausalLM": {"no_rope_layer_interval": 2},
    "Qwen3MoeForCausalLM": {**EXPERTS, "norm_topk_prob": True, "mlp_only_layers": [1]},
    "GptOssForCausalLM": {
        "intermediate_size": 64,
        "num_local_experts": 16,
        "num_experts_per_tok": 4,
        "sliding_window": 20,
    },
    "Qwen3_5ForCausalLM": DELTA,
    "Qwen3_5MoeForCausalLM": {**DELTA, **SHARED},
    "Qwen3NextForCausalLM": {**DELTA, **SHARED},
    "Gemma3ForCausalLM": {"sliding_window": 20, "sliding_window_pattern": 2},
    "Gemma4ForCausalLM": {**WINDOWED, **EXPERTS, **EXPERTS_BESIDE, "num_kv_shared_layers": 2},
    "Gemma4UnifiedForCausalLM": {**WINDOWED, "attention_k_eq_v": True},
    "Lfm2ForCausalLM": CONV,
    "Lfm2MoeForCausalLM": {**CONV, **EXPERTS, "num_dense_layers": 1},
}


def families(plan: CheckPlan) -> Finding:
    """The logits of a text, in one long step, in steps of one row and in a short one."""
    found = Finding("families: a small model of every kind against plain torch")
    apart: dict[str, float] = {}
    replays = failed = 0
    sizes = FIRST, *[1] * SINGLE, LAST
    for name in FAMILIES:
        folder = write_random(plan.folder / name, name)
        dtype = DTYPES.get(plan.dtype, "auto")
        model = load_model(folder, dtype, plan.device, progress=False)
        wanted = logits(load_model(folder, torch.float64, "cpu", progress=False), sizes)
        apart[name] = float((logits(model, sizes).double() - wanted).abs().mean() / wanted.std())
        if isinstance(model, PagedDecoder) and model.recorder.enabled:
            replays += model.recorder.replays
            failed += model.recorder.failed
        limit = APART[model.dtype]
        if not apart[name] <= limit:
            found.passed = False
            found.lines.append(f"wrong: {name} differs by {apart[name]:.1%}")
    worst = max(apart, key=apart.__getitem__)
    found.lines.insert(
        0,
        f"{len(FAMILIES)} families; {worst} differs most, by {apart[worst]:.2%} (limit {limit:.1%})",
    )
    found.lines.append(f"{replays} recorded steps replayed, {failed} sizes could not be recorded")
    found.passed &= replays > 0 or not failed  # where some are recorded, the others are only slow
    found.figures = {"apart": apart, "limit": limit, "replays": replays, "failed": failed}
    found.advice = (
        "a family that is wrong runs on 'cpu': report this file. If only no step could be recorded, answers "
        "are right but slow, and the log says which kernel is at fault"
    )
    return found


def write_random(folder: Path, architecture: str) -> Path:
    """A checkpoint of random weights."""
    fields = {"architectures": [architecture], **COMMON, **FAMILIES[architecture]}
    fields = {name: value for name, value in fields.items() if value is not None}
    random = torch.Generator().manual_seed(0)
    table: dict[str, Tensor] = {}
    config = ModelConfig.from_json(fields)
    for name, shape in (tensor_shapes(config) | mtp_shapes(config)).items():
        numbers = torch.randn(shape, generator=random)
        if name.endswith("norm.weight") or "norm_" in name or "scal" in name:
            numbers = 1 + 0.2 * numbers
        elif name.endswith("router_scale"):
            numbers = 1 + numbers.abs()
        elif name.endswith("bias"):
            numbers *= 0.2
        elif len(shape) == 2:
            numbers *= shape[-1] ** -0.5
        table[name] = numbers.bfloat16()
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(fields), "utf-8")
    save_file(table, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def logits(model: Model, sizes: Sequence[int]) -> Tensor:
    """[T, V] of a text that is read in steps of these sizes."""
    count = sum(sizes)
    tokens = np.random.default_rng(0).integers(5, model.config.vocab_size, count).tolist()
    page = max(16, model.storage.page_size)
    kv = kv_cache_for(model, -(-count // page), page, False, 1, 0).storage
    slots, start = np.arange(count), 0
    parts = []
    for size in sizes:
        rows = Rows.of([chain(tokens, slots, start, start + size, outputs=range(size))])
        parts.append(model.forward(rows, kv).logits.cpu())
        start += size
    return torch.cat(parts)
