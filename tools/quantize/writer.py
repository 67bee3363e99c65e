"""A quantised checkpoint's files, a shard at a time."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from fastslow.engine.checkpoint.quantised import DESCRIPTION, KV_TYPE, METHOD, QuantKind
from fastslow.engine.checkpoint.shards import INDEX, SINGLE
from fastslow.engine.host.files import read_object
from fastslow.engine.model.ops import QuantLinear

SHARD = 4 << 30  # bytes
LEFT_OUT = (".safetensors", ".blocks", ".head", ".index.json", "_report.json")
OWN = ("config.json", DESCRIPTION)


def described(name: str, tensor: Tensor | QuantLinear) -> dict[str, Tensor]:
    """A tensor, or the two of a matrix `X.weight` in int8, by "KIND NAME"."""
    if isinstance(tensor, Tensor):
        return {f"{QuantKind.FLOAT} {name}": tensor}
    parts = {name: tensor.weight_OI, f"{name}_scale": tensor.scale_O[:, None].bfloat16()}
    return {f"{QuantKind.DYNAMIC} {part}": own for part, own in parts.items()}


@dataclass(slots=True)
class CheckpointWriter:
    """Takes tensors in file order and writes them to `folder` in shards. kv: with scales of keys and values."""

    folder: Path
    kv: bool = False
    shard: int = SHARD
    nbytes: int = 0
    _description: dict[str, str] = field(default_factory=dict)
    _some: dict[str, Tensor] = field(default_factory=dict)
    _size: int = 0
    _shards: list[list[str]] = field(default_factory=list)

    def take(self, tensors: dict[str, Tensor]) -> None:
        """Take some, by "KIND NAME"."""
        for key, tensor in tensors.items():
            kind, _, name = key.partition(" ")
            if self._size and self._size + tensor.nbytes > self.shard:
                self._flush()
            self._some[name] = tensor.contiguous()
            self._description[name] = kind
            self._size += tensor.nbytes

    def close(self, source: Path) -> None:
        """Write what is left, the description, and the small files of the source's folder."""
        self._flush()
        count = len(self._shards)
        names = {i: f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)}
        if count == 1:
            names = {0: SINGLE}
        else:
            table = {name: names[i] for i, part in enumerate(self._shards) for name in part}
            index = {"metadata": {"total_size": self.nbytes}, "weight_map": table}
            (self.folder / INDEX).write_text(json.dumps(index), "utf-8")
        for i, name in names.items():
            self._at(i).rename(self.folder / name)
        described: dict[str, Any] = {"model_quant_type": QuantKind.DYNAMIC}
        if self.kv:
            described["kv_cache_type"] = KV_TYPE
        text = json.dumps({**described, **self._description}, indent=0)
        (self.folder / DESCRIPTION).write_text(text, "utf-8")
        for path in source.iterdir():
            if path.is_file() and not path.name.endswith(LEFT_OUT) and path.name not in OWN:
                shutil.copyfile(path, self.folder / path.name)
        config = read_object(source / "config.json")
        section = {"quant_method": METHOD, "model_quant_type": QuantKind.DYNAMIC}
        config["quantization_config"] = section | ({"kv_cache_type": KV_TYPE} if self.kv else {})
        (self.folder / "config.json").write_text(json.dumps(config, indent=2), "utf-8")

    def _flush(self) -> None:
        if self._some:
            save_file(self._some, self._at(len(self._shards)), metadata={"format": "pt"})
            self._shards.append(list(self._some))
            self.nbytes += self._size
            self._some, self._size = {}, 0

    def _at(self, number: int) -> Path:
        return self.folder / f".shard-{number}"
