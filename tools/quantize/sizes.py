"""What quantising would make of a checkpoint's bytes, from its config alone."""

from __future__ import annotations

import torch
from torch import Tensor

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.tensors import tensor_shapes
from fastslow.tools.quantize.plain_layer import ROUTER

FLOAT = torch.bfloat16
OUTER = ("model.embed_tokens.weight", "lm_head.weight")
LIMIT = 0.52  # of the float checkpoint's bytes
PARTS = ("embedding and head", "attention", "router", "shared experts", "experts", "MLP", "norms")
MARKS = {  # of a tensor's name; the earliest one that fits counts
    "norm": "norms",
    ".self_attn.": "attention",
    ".shared_expert.": "shared experts",
    ".experts.": "experts",
    ".gate.weight": "router",
    "router_scale": "router",
}


def planned(
    config: ModelConfig, *, embedding: bool, kv: bool = False
) -> dict[str, tuple[int, int]]:
    """Bytes of each part of a bfloat16 checkpoint before and after, on meta tensors: nothing is allocated.

    embedding: whether embedding and head become int8. kv: with scales of keys and values.
    """
    found: dict[str, tuple[int, int]] = {}
    for name, shape in tensor_shapes(config).items():
        part = _part(name)
        before = torch.empty(shape, dtype=FLOAT, device="meta").nbytes
        after = sum(t.nbytes for t in _quantised(name, shape, embedding))
        if kv and name.endswith(("k_proj.weight", "v_proj.weight")):
            after += torch.empty(shape[0], device="meta").nbytes
        had = found.get(part, (0, 0))
        found[part] = (had[0] + before, had[1] + after)
    return {part: found[part] for part in PARTS if part in found}


def int8_embedding(config: ModelConfig) -> bool:
    """Whether embedding and head must be int8 for the whole to stay below 0.52 of its bytes."""
    before, after = (sum(side) for side in zip(*planned(config, embedding=False).values()))
    return bool(after > LIMIT * before)


def _quantised(name: str, shape: tuple[int, ...], embedding: bool) -> list[Tensor]:
    floats = not name.endswith(".weight") or name.endswith(f"{ROUTER}.weight")
    if len(shape) == 1 or floats or (name in OUTER and not embedding):
        return [torch.empty(shape, dtype=FLOAT, device="meta")]
    scales = torch.empty(shape[0], 1, dtype=FLOAT, device="meta")
    return [torch.empty(shape, dtype=torch.int8, device="meta"), scales]


def _part(name: str) -> str:
    if name in OUTER:
        return "embedding and head"
    return next((part for mark, part in MARKS.items() if mark in name), "MLP")
