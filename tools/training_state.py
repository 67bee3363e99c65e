"""The state of a training run in one safetensors file, from which it continues: data only, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write nested mappings and lists of tensors and JSON values; atomic. Tuples come back as lists."""
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_split(state, tensors))
    part = path.with_name(f"{path.name}.part")
    save_file(tensors, part, {"state": tree})
    part.replace(path)


def read_state(path: Path) -> Any:
    """What `write_state` wrote; ValueError for another file."""
    with safe_open(path, framework="pt") as file:
        tree = (file.metadata() or {}).get("state")
        if tree is None:
            raise ValueError(f"{path} holds no state of a training run")
        return _joined(json.loads(tree), file)


def _split(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().clone().contiguous()  # of one memory each, as files want it
        return {"tensor": name}
    if isinstance(value, Mapping):  # keys may be numbers, which JSON's cannot
        return {"items": [[key, _split(inner, tensors)] for key, inner in value.items()]}
    if isinstance(value, list | tuple):
        return [_split(inner, tensors) for inner in value]
    return value


def _joined(value: Any, file: Any) -> Any:
    if isinstance(value, dict):
        if "tensor" in value:
            return file.get_tensor(value["tensor"])
        return {key: _joined(inner, file) for key, inner in value["items"]}
    if isinstance(value, list):
        return [_joined(inner, file) for inner in value]
    return value
