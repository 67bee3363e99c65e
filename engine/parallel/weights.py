"""A rank's shard of a checkpoint, read as slices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastslow.engine.checkpoint.checkpoint import Checkpoint, ReadPart
from fastslow.engine.model.decoder import Read, Weights
from fastslow.engine.model.moge import Moge
from fastslow.engine.model.ops import Ops
from fastslow.engine.model.tensors import tensor_shapes
from fastslow.engine.parallel.sharding import RankShard

_EXPERT = re.compile(r"(.*\.experts\.)(\d+)(\..*)")


class ShardReader:
    """Reads the tensors of a rank's local config: what it asks for whole is this rank's slice.

    Args:
        shard: whose shard.
        read: gives a slice of a tensor of the whole model.

    Attributes:
        nbytes: read so far.
    """

    def __init__(self, shard: RankShard, read: ReadPart) -> None:
        self._shard = shard
        self._read = read
        self._shapes = tensor_shapes(shard.config)
        self.nbytes = 0

    def __call__(self, name: str) -> Tensor:
        """A tensor by its local name, in which experts are counted from the first held."""
        if match := _EXPERT.fullmatch(name):
            before, number, after = match.groups()
            name = f"{before}{int(number) + self._shard.experts.start}{after}"
        shape = self._shapes[name]
        parts = [self._read(name, part) for part in self._shard.parts(name, shape)]
        if not parts:
            return torch.zeros(shape)  # a bias that another rank adds
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        self.nbytes += tensor.numel() * tensor.element_size()
        return tensor


@contextmanager
def shard_reader(checkpoint: Checkpoint, shard: RankShard, progress: bool) -> Iterator[ShardReader]:
    """Reads a rank's shard of a checkpoint from memory-mapped files that stay open."""
    with checkpoint.slicer(progress, _held(shard)) as read:
        yield ShardReader(shard, read)


def shard_weights(
    shard: RankShard, ops: Ops, dtype: torch.dtype, device: torch.device, read: Read
) -> Weights:
    """The weights of a rank's shard; `read` as `ShardReader` gives them."""
    weights = Weights(shard.local, ops, dtype, device, read)
    for layer in weights.layers:
        if shard.rank % shard.attention:
            layer.attention.out_bias = None
        if not isinstance(layer.mlp, Moge):
            if shard.rank:
                layer.mlp.down_bias = None
            continue
        if shard.inner:
            layer.mlp.experts = replace(layer.mlp.experts, down_bias=None)
        if shard.parallel.ep > 1 and shard.config.groups:
            layer.mlp.groups = shard.config.groups
            layer.mlp.held_groups = shard.groups
        elif shard.parallel.ep > 1:
            layer.mlp.held_experts = shard.experts
    return weights


def weight_bytes(weights: Weights) -> int:
    """Bytes that the weights take; one tensor under two names counts once."""
    found: dict[int, Tensor] = {}
    _collect(weights, found)
    return sum(tensor.numel() * tensor.element_size() for tensor in found.values())


def _collect(value: Any, found: dict[int, Tensor]) -> None:
    if isinstance(value, Tensor):
        found[id(value)] = value
    elif isinstance(value, list):
        for part in value:
            _collect(part, found)
    elif is_dataclass(value):
        for field in fields(value):
            if field.name not in ("read", "config", "ops"):
                _collect(getattr(value, field.name), found)


def _held(shard: RankShard) -> int:
    shapes = tensor_shapes(shard.config)
    return sum(len(shard.parts(name, shape)) for name, shape in shapes.items())
