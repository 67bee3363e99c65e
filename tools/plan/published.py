"""Models that can be planned for, by a name or a file: their shapes, and the bytes of their numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from fastslow.engine.host.files import read_object
from fastslow.engine.host.gguf_file import GgufTensor, is_gguf, read_gguf
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.params import nearest
from fastslow.models.locate import BUILTIN, builtin_path
from fastslow.tools.plan.step import Precision

KNOWN: dict[str, dict[str, Any]] = json.loads(  # the fields of public config.json files
    Path(__file__).with_name("models.json").read_text("utf-8")
)


def config_of(model: str) -> ModelConfig:
    """Of a known name, a checkpoint folder, a GGUF file, a config.json, or a built-in model. ValueError:
    none of them, or a config.json that does not fit."""
    if model in KNOWN:
        return ModelConfig.from_json(KNOWN[model])
    path = Path(model)
    if path.is_dir() or is_gguf(path):
        return ModelConfig.from_folder(path)
    if path.is_file():
        try:
            return ModelConfig.from_json(read_object(path))
        except ValueError as error:
            raise ValueError(f"{path} is no config.json of a known model: {error}") from None
    if model in BUILTIN:
        return ModelConfig.from_folder(builtin_path(model))
    raise ValueError(f"model={model!r} is unknown{nearest(model, (*KNOWN, *BUILTIN))}")


OWN = "own"  # of a GGUF file: the numbers that it holds
EMBEDDING, HEAD = "token_embd.weight", "output.weight"


def precision_of(model: str, weights: str, kv: str) -> Precision:
    """Bytes of a model's numbers in a format's name, or in a GGUF file's own numbers. ValueError: an unknown
    name, or "own" for a model that is no GGUF file."""
    if weights != OWN:
        return Precision.of(weights, kv)
    if not is_gguf(Path(model)):
        raise ValueError(f"weights='own' is for GGUF files, and {model} is none")
    tensors = {tensor.name: tensor for tensor in read_gguf(Path(model)).tensors}
    layers = [t for name, t in tensors.items() if name not in (EMBEDDING, HEAD)]
    head = tensors.get(HEAD) or tensors[EMBEDDING]
    usual = Precision.of("int8", kv)
    return replace(usual, weight=_bytes_each(layers), head=_bytes_each([head]))


def _bytes_each(tensors: list[GgufTensor]) -> float:
    """Bytes of a number, as a mean over tensors."""
    return sum(t.data.nbytes for t in tensors) / sum(prod(t.shape) for t in tensors)
