"""A step's rows as tensors, for decoders that run it without waiting for the host; and their way to the
device: side by side in memory that it copies from by itself, in one copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastslow.engine.backends.accelerator.kv import (
    BLOCK,
    AttentionLayout,
    BlockTables,
    attention_layout,
)
from fastslow.engine.backends.accelerator.ops import PagedOps
from fastslow.engine.backends.alike import ACCELERATORS, AlikeLayers
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.mixers.latent import LatentAttention
from fastslow.engine.model.parts import Mixer, Step
from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.rows import Rows
from fastslow.engine.types import Floats

ALIGNMENT = 64  # bytes, of every tensor's first one
LEAST = 1 << 16  # bytes that are taken at once
T = TypeVar("T")


class Staging:
    """Host memory in one piece, pinned where the device can use that. It is filled again only once
    the device has read it: an event says when. So the host does not wait for a copy to end."""

    def __init__(self, ops: PagedOps) -> None:
        self._ops = ops
        self._host: Tensor | None = None
        self._read: torch.Event | None = None

    def send(self, tensors: Sequence[Tensor], memory: Tensor) -> list[Tensor]:
        """Copy tensors of the host into `memory`, int8 of at least `room` on the device; the same
        tensors there."""
        if self._read is not None:
            self._read.synchronize()
        needed = room(tensors)
        if self._host is None or len(self._host) < needed:
            self._host = self._ops.host_memory(max(LEAST, 2 * needed))
        for mine, given in zip(_views(tensors, self._host), tensors):
            mine.copy_(given)
        memory[:needed].copy_(self._host[:needed], non_blocking=True)
        self._read = self._ops.event()
        return _views(tensors, memory)


def room(tensors: Sequence[Tensor]) -> int:
    """Bytes that tensors take side by side."""
    return sum(_whole(x.nbytes) for x in tensors)


def _views(tensors: Sequence[Tensor], memory: Tensor) -> list[Tensor]:
    """Tensors like these, one after the other in memory."""
    views, first = [], 0
    for x in tensors:
        views.append(memory[first : first + x.nbytes].view(x.dtype).view(x.shape))
        first += _whole(x.nbytes)
    return views


def _whole(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class Result(NamedTuple):
    """Logits [M, V], best tokens int32 [M], features [S, F]; on the device."""

    logits: Tensor
    best: Tensor
    features: Tensor


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Layout of a model's steps: one for each of the `windows` of its layers.

    layers: of every layer that runs, the place of its window; None: it is a module of plain torch. chosen: routed groups of a token, or experts
    where the model has no groups. chained: of each window, whether the device runs chains of rows. merged: whether a tail's
    rows see what is in blocks by its kernels. plain: what asks the host for places, see `unrecorded`.
    """

    ops: PagedOps
    windows: tuple[int, ...]
    layers: tuple[int | None, ...]
    chosen: int
    chained: tuple[bool, ...]
    merged: bool
    plain: str = ""

    @classmethod
    def of(cls, config: ModelConfig, layers: Sequence[int], ops: PagedOps) -> StepPlan:
        """For a model of which these layers run."""
        mixers = [config.layers[n].mixer for n in layers]
        each = [window_of(mixer) for mixer in mixers]
        windows = tuple(dict.fromkeys(size for size in each if size is not None))
        places = tuple(None if size is None else windows.index(size) for size in each)
        alike = AlikeLayers.of(config, ACCELERATORS)
        a, known = alike.attention, alike.latent is None or ops.latents
        fronts = known and (ops.merges or not (a.sink_logits or a.sinks))
        chained = tuple(fronts and (ops.windows or not size) for size in windows)
        chosen, plain = RoutedUnits.of(config).most, unrecorded(config)
        return cls(ops, windows, places, chosen, chained, known and ops.merges, plain)

    def layouts(self, rows: Rows, most: int) -> list[AttentionLayout]:
        """Of a step, for each window, in runs of at most `most` rows."""
        return [
            attention_layout(rows, BLOCK, most, self.merged, size, chained)
            for size, chained in zip(self.windows, self.chained)
        ]

    def known(self, runs: BlockTables) -> BlockTables:
        """Runs with what the device needs of them, on the host."""
        laid = self.ops.attention_metadata(runs, runs.query_ends[-1])
        return replace(runs, tensors=tuple(map(_tensor, laid)))


def window_of(mixer: Mixer) -> int | None:
    """Of attention over block tables; None: another mixer."""
    if isinstance(mixer, LatentAttention) and mixer.indexer is not None:
        return None
    return mixer.window if isinstance(mixer, GroupedAttention | LatentAttention) else None


def unrecorded(config: ModelConfig) -> str:
    """Say what of a model's steps asks the host for places, so that they cannot be recorded; empty: nothing."""
    if config.state_layout.running:
        return "running states"
    return "indexers" if any(window_of(x.mixer) is None for x in config.layers) else ""


@dataclass(frozen=True, slots=True)
class PagedStep:
    """T rows, M of whose logits and S of whose features are wanted.

    tokens int64 [T], slots int32 [T], groups int32 [T] (how many run, never ALL_GROUPS), cos and sin
    float32 [T, 1, D], outputs int64 [M], feature_rows int64 [S]. layouts: who sees what, for each
    of the model's windows. routed: whether any row runs a routed expert. memory: what these tensors lie
    in, on a device. inputs: [T, H] that rows of an MTP layer read. plain: the same for modules of plain torch.
    """

    tokens: Tensor
    slots: Tensor
    groups: Tensor
    cos: Tensor
    sin: Tensor
    outputs: Tensor
    feature_rows: Tensor
    layouts: tuple[AttentionLayout, ...]
    routed: bool
    memory: Tensor | None = None
    inputs: Tensor | None = None
    plain: Step | None = None

    @classmethod
    def of(
        cls,
        rows: Rows,
        angles: tuple[Floats, Floats],
        layouts: Sequence[AttentionLayout],
        plan: StepPlan,
    ) -> PagedStep:
        """On the CPU. angles: cosines and sines [T, D / 2]."""
        cos, sin = (_tensor(np.concatenate((x, x), -1))[:, None] for x in angles)
        running = np.where(rows.groups < 0, plan.chosen, np.minimum(rows.groups, plan.chosen))
        return cls(
            _tensor(rows.tokens),
            _tensor(rows.slots).int(),
            _tensor(running).int(),
            cos,
            sin,
            _tensor(rows.outputs),
            _tensor(rows.feature_rows),
            mapped(tuple(layouts), BlockTables, plan.known),
            bool(running.any()),
        )

    def to(self, device: torch.device, staging: Staging) -> PagedStep:
        """The same on a device."""
        mine = self._tensors()
        memory = torch.empty(room(mine), dtype=torch.int8, device=device)
        there = iter(staging.send(mine, memory))
        moved: PagedStep = mapped(self, Tensor, lambda _: next(there))
        return replace(moved, memory=memory)

    def fill(self, other: PagedStep, staging: Staging) -> None:
        """Take over the numbers of a step of the same shape that is on the CPU."""
        assert self.memory is not None
        staging.send(other._tensors(), self.memory)

    def _tensors(self) -> list[Tensor]:
        """All, in the order of `mapped`."""
        found: list[Tensor] = []

        def seen(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        mapped(self, Tensor, seen)
        return found


def mapped(value: Any, kind: type[T], made: Callable[[T], T]) -> Any:
    """The same with another in the place of each thing of a kind that lies in its tuples and dataclasses."""
    if isinstance(value, kind):
        return made(value)
    if isinstance(value, tuple):
        return tuple(mapped(part, kind, made) for part in value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    parts = {field.name: getattr(value, field.name) for field in fields(value)}
    return replace(value, **{name: mapped(part, kind, made) for name, part in parts.items()})


def _tensor(values: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
