"""Tiny W8A8 checkpoints, for tests."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastslow.engine.model.ops import QuantLinear
from fastslow.tools.job_options import QuantizeOptions
from fastslow.tools.quantize.quantize import quantize


def texts_of(vocab: int, count: int = 24, length: int = 24, seed: int = 0) -> Iterator[list[int]]:
    return iter(np.random.default_rng(seed).integers(0, vocab, (count, length)).tolist())


def quantised(source: Path, out: Path, **fields: Any) -> Path:
    """The W8A8 of a tiny checkpoint."""
    config = json.loads((source / "config.json").read_text())
    options = QuantizeOptions(**{"tokens": 192, **fields})
    return quantize(source, out, texts_of(config["vocab_size"]), options).folder


def export(source: Path, out: Path, kind: str = "W8A8_DYNAMIC", bits: bool = False) -> Path:
    """A float checkpoint in W8A8 as Ascend's exporters write it: embedding and head stay in float.

    kind: of the matrices. bits: the float32 bits of deq_scale in an int64, as for float16 models.
    """
    table: dict[str, Tensor] = {}
    for file in source.glob("*.safetensors"):
        table |= load_file(file)
    found, described = dict[str, Tensor](), {"model_quant_type": kind}
    for name, tensor in table.items():
        prefix = name.removesuffix(".weight")
        if not name.endswith("_proj.weight"):
            static = kind == "W8A8" and name.endswith("_proj.bias")  # it lies in quant_bias
            found |= {} if static else {name: tensor}
            continue
        matrix = QuantLinear.of(tensor)
        found |= _exported(prefix, matrix, table.get(f"{prefix}.bias", torch.zeros(len(tensor))), kind, bits)
    described |= {name: kind if name.endswith("_proj.weight") else "FLOAT" for name in found}
    out.mkdir()
    save_file(found, out / "quant_model_weight_w8a8.safetensors", metadata={"format": "pt"})
    (out / "quant_model_description.json").write_text(json.dumps(described))
    (out / "config.json").write_text((source / "config.json").read_text())
    return out


def _exported(prefix: str, matrix: QuantLinear, bias: Tensor, kind: str, bits: bool) -> dict[str, Tensor]:
    column = matrix.scale_O[:, None].clone()
    found = {f"{prefix}.weight": matrix.weight_OI}
    if kind == "W8A8_DYNAMIC":
        return found | {f"{prefix}.weight_scale": column, f"{prefix}.weight_offset": torch.zeros_like(column)}
    step, offset = torch.tensor([0.05]), torch.tensor([3.0])
    dequantising = step * matrix.scale_O
    whole = bias / dequantising - offset * matrix.weight_OI.float().sum(-1)
    kept = dequantising.view(torch.int32).to(torch.int64) if bits else dequantising
    return found | {
        f"{prefix}.input_scale": step, f"{prefix}.input_offset": offset, f"{prefix}.deq_scale": kept,
        f"{prefix}.quant_bias": whole.round().to(torch.int32),
    }  # fmt: skip
