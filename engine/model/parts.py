"""The parts of a layer: protocols of mixers and feed-forward parts, the step that they run, and what reads weights.

A part is data, a frozen dataclass; its arithmetic on plain torch is a module, which holds loaded weights.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastslow.engine.kv.state.layout import State
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.kv.state.windows import PageMap
from fastslow.engine.model.norms import Norm, NormModule, RmsNorm
from fastslow.engine.model.ops import Linear, Ops, QuantLinear, Read, ReadQuant, no_int8, wide
from fastslow.engine.model.tensor_spec import TensorSpec
from fastslow.engine.rows import Rows
from fastslow.engine.types import Ints

T = TypeVar("T")


@dataclass(slots=True)
class Step:
    """T real rows in a batch padded to P, and what layers that are alike make of them once. dtype: the model's."""

    rows: Rows
    padded: int  # P
    ops: Ops
    dtype: torch.dtype
    device: torch.device
    slots: slice | Tensor = field(init=False)  # int64 [T], or the run that they are
    token_inputs: Tensor | None = field(init=False, default=None)
    """Per-layer embeddings [P, layers, width]; see `ffn/token_input.py`."""
    chosen: Sequence[Any] | None = field(init=False, default=None)
    """What an indexer chose last, as `Lines`; see `mixers/indexer.py`."""
    _made: dict[Hashable, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.slots = self._at(self.rows.slots)

    @property
    def count(self) -> int:
        """T."""
        return len(self.rows.tokens)

    @property
    def tokens(self) -> Tensor:
        """int64 [P]."""
        return torch.from_numpy(padded(self.rows.tokens, self.padded)).to(self.device)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of this key, made by the first layer that asks."""
        if key not in self._made:
            self._made[key] = make()
        found: T = self._made[key]
        return found

    def store(self, cache_SKD: Tensor, fresh_PKD: Tensor, where: PageMap | None = None) -> None:
        """Write the real rows at their slots. where: those of the layer, see `KVStorage.pages_of`."""
        fresh, slots = fresh_PKD[: self.count], self.slots
        if where is not None:
            slots = self.once("slots", lambda: self._at(where(self.rows.slots)))
        if isinstance(slots, slice):
            cache_SKD[slots].copy_(fresh)
        else:
            cache_SKD.index_copy_(0, slots, fresh.to(cache_SKD.dtype))

    def _at(self, slots: Ints) -> slice | Tensor:
        run = as_run(slots)
        return torch.from_numpy(slots).to(self.device) if run is None else run


def padded(values: Ints, size: int) -> Ints:
    """Filled up with zeros."""
    return np.pad(values, (0, size - len(values)))


def as_run(slots: Ints) -> slice | None:
    """The slice that these slots are, if they are one ascending run."""
    if not len(slots):
        return None
    first = int(slots[0])
    if np.array_equal(slots, np.arange(first, first + len(slots))):
        return slice(first, first + len(slots))
    return None


def too_small(**sizes: int) -> Iterator[str]:
    """Yield a sentence for each size below 1."""
    yield from (f"{name} {size} must be at least 1" for name, size in sizes.items() if size < 1)


class Table(Protocol):
    """A matrix of which single rows are read."""

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Rows i64 [n] as [n, elements], in the dtype of the file."""


@dataclass
class WeightReader:
    """Reads weights of a checkpoint: tensors in `dtype` on `device`, matrices as `Ops.pack` makes them.

    ops: with which the modules that are loaded run. linear: gives matrices that are to run in int8, None for the
    others. rows: see `Checkpoint.table`. Matrices are stacked and packed one by one as they are read, so that beside
    the finished ones no more than one lies in memory."""

    ops: Ops
    dtype: torch.dtype
    device: torch.device
    read: Read
    linear: ReadQuant = no_int8
    rows: Callable[[str], Table | None] | None = None
    _buffer: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._buffer = torch.empty(0, dtype=self.dtype, device=self.device)

    def plain(self, *names: str, dtype: torch.dtype | None = None) -> Tensor:
        """The named tensors below each other."""
        parts = [self.read(name) for name in names]
        shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
        whole = torch.empty(shape, dtype=dtype or self.dtype, device=self.device)
        return _fill(whole, parts)

    def norm(self, name: str, kind: Norm) -> NormModule:
        """With an offset in float32, since 1 + x has few bits left for x."""
        if isinstance(kind, RmsNorm) and kind.offset:
            weight = self.plain(f"{name}.weight", dtype=wide(self.dtype))
            return NormModule(self.ops, kind, weight.add_(kind.offset))
        biased = not isinstance(kind, RmsNorm) and kind.bias
        bias = self.plain(f"{name}.bias") if biased else None
        return NormModule(self.ops, kind, self.plain(f"{name}.weight"), bias)

    def table(self, name: str) -> Table:
        """A matrix of which single rows are read."""
        found = None if self.rows is None else self.rows(name)
        return self.plain(name).cpu() if found is None else found

    def matrix(self, *names: str, bias: bool = False) -> Linear:
        """The matrices `X.weight` below each other, and their biases."""
        added = self.plain(*(f"{name}.bias" for name in names)) if bias else None
        weights = [f"{name}.weight" for name in names]
        if (int8 := self.in_int8(weights)) is not None:
            return int8._replace(bias=added)
        return Linear(self._pack([self.read(name) for name in weights]), added)

    def in_int8(self, names: Sequence[str]) -> Linear | None:
        """The named matrices below each other, if they are all to run in int8."""
        matrices = [m for name in names if (m := self.linear(name)) is not None]
        if len(matrices) < len(names):
            return None
        whole = QuantLinear.stack(matrices)
        scale = whole.scale_O.float().to(self.device)
        return Linear(whole.weight_OI.to(self.device), None, scale)

    def packed(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> Linear:
        """A matrix that was read with `plain`."""
        return Linear(self._pack([weight_OI]), bias_O)

    def head(self, name: str, tied_VH: Tensor | None) -> Linear:
        """The model's head. tied: the embedding, where that is it."""
        if tied_VH is None or self.linear(name) is not None:
            return self.matrix(name.removesuffix(".weight"))
        return Linear(self.ops.pack(tied_VH))

    def mixer(self, mixer: Mixer, prefix: str) -> MixerModule:
        """The module of a mixer."""
        return mixer.load(prefix, self)

    def heads(self, weight_NOI: Tensor) -> Any:
        """Matrices of N heads that were read with `plain`, as `Ops.of_heads` takes them."""
        return [self.packed(head.contiguous()) for head in weight_NOI]

    def experts(self, prefixes: Sequence[str], sides: Sequence[str], bias: bool) -> Any:
        """The matrices `PREFIX.SIDE_proj` of each expert below each other, one `Linear` for each expert, or of all."""
        each = [[f"{prefix}.{side}_proj" for side in sides] for prefix in prefixes]
        return [self.matrix(*names, bias=bias) for names in each]

    def _pack(self, parts: list[Tensor]) -> Tensor:
        """Out of one reused buffer: a buffer for each would leave holes between the packed ones."""
        shape = (sum(len(part) for part in parts), parts[0].shape[1])
        if self._buffer.numel() < prod(shape):
            self._buffer = self._buffer.new_empty(prod(shape))
        whole = _fill(self._buffer[: prod(shape)].view(shape), parts)
        packed = self.ops.pack(whole)
        return whole.clone() if packed is whole else packed


def _fill(whole: Tensor, parts: list[Tensor]) -> Tensor:
    for place, part in zip(torch.split(whole, [len(part) for part in parts]), parts, strict=True):
        place.copy_(part)
    return whole


class MixerModule(Protocol):
    """A mixer with its weights, on plain torch."""

    def __call__(self, x_PH: Tensor, kv: KVStorage, n: int, step: Step) -> Tensor:
        """[P, H] of normed rows [P, H]; reads and writes the state of layer `n`."""


class FfnModule(Protocol):
    """A feed-forward part with its weights, on plain torch."""

    def __call__(self, x_PH: Tensor, wanted: Ints, stream_PH: Tensor | None = None) -> Tensor:
        """[P, H] of normed rows [P, H]. wanted: int64 [P], routed groups or experts that run for each row. stream_PH: the
        rows before the norm, of which some parts make more."""


class LayerPart(Protocol):
    """A part of a layer."""

    def tensors(self, prefix: str, hidden: int) -> Iterator[TensorSpec]:
        """The tensors below the layer's prefix, in file order."""

    def misfits(self) -> Iterator[str]:
        """Yield a sentence for each field that does not fit the others."""


class Mixer(LayerPart, Protocol):
    """A part that lets rows of a text see each other: attention of any kind, or a recurrence."""

    @property
    def state(self) -> State:
        """The state that the layer keeps of a text."""

    def load(self, prefix: str, reader: WeightReader) -> MixerModule:
        """The mixer with its weights, each matrix in the reader's form."""


class FeedForward(LayerPart, Protocol):
    """A part that makes something of each row alone."""

    def load(self, prefix: str, reader: WeightReader) -> FfnModule:
        """The part with its weights, each matrix in the reader's form."""
