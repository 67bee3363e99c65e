"""A gated short convolution, whose state is the last inputs of a text. LFM2: Liquid AI, arXiv 2511.23404.

Sums run tap by tap, the newest row first, of products and sums alone: a row has the same bits in any chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastslow.engine.kv.state.layout import RunningState
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.ops import Linear, Ops, wide
from fastslow.engine.model.parts import Step, WeightReader, too_small
from fastslow.engine.model.tensor_spec import TensorSpec, linear
from fastslow.engine.rows import RunningRows
from fastslow.engine.types import Ints

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class ShortConv:
    """out(c * conv(b * x)), where b, c and x are `channels` rows each of one matrix, and a token sees `kernel` inputs
    of its channel.

    bias: both matrices have one, and the convolution."""

    channels: int
    kernel: int = 3
    bias: bool = False

    @property
    def state(self) -> RunningState:
        return RunningState(((self.kernel - 1, self.channels),), ((self.channels,),))

    def misfits(self) -> Iterator[str]:
        yield from too_small(conv_dim=self.channels)
        if self.kernel < 2:
            yield f"conv_L_cache {self.kernel} must be at least 2"

    def tensors(self, prefix: str, hidden: int) -> Iterator[TensorSpec]:
        own = f"{prefix}.conv"
        yield from linear(f"{own}.in_proj", 3 * self.channels, hidden, self.bias)
        yield TensorSpec(f"{own}.conv.weight", (self.channels, 1, self.kernel))
        if self.bias:
            yield TensorSpec(f"{own}.conv.bias", (self.channels,))
        yield from linear(f"{own}.out_proj", hidden, self.channels, self.bias)

    def load(self, prefix: str, reader: WeightReader[M, Any]) -> ConvWeights[M]:
        own, sums = f"{prefix}.conv", wide(reader.dtype)
        return ConvWeights(
            reader.matrix(f"{own}.in_proj", bias=self.bias),
            read_taps(f"{own}.conv.weight", reader),
            reader.plain(f"{own}.conv.bias", dtype=sums) if self.bias else None,
            reader.matrix(f"{own}.out_proj", bias=self.bias),
        )

    def module(self, weights: ConvWeights[Linear], ops: Ops) -> ConvModule:
        return ConvModule(self, weights, ops)


@dataclass(slots=True)
class ConvWeights(Generic[M]):
    """entry: b, c and x below each other. taps: [kernel, channels], of a row itself first. bias: [channels]."""

    entry: M
    taps: Tensor
    bias: Tensor | None
    out: M


def read_taps(name: str, reader: WeightReader[Any, Any]) -> Tensor:
    """See `ConvWeights`."""
    return reader.plain(name, dtype=wide(reader.dtype))[:, 0].T.flip(0).contiguous()


@dataclass(slots=True)
class ConvModule:
    """A gated short convolution on plain torch."""

    mixer: ShortConv
    weights: ConvWeights[Linear]
    ops: Ops

    def __call__(self, x_PH: Tensor, kv: KVStorage, n: int, step: Step) -> Tensor:
        """[P, hidden]. Folds in what was accepted since the last step, and the rows that are final."""
        b, c, x = self.ops.linear(x_PH, *self.weights.entry).to(wide(x_PH.dtype)).chunk(3, -1)
        seen = convolved(b * x, self.weights.taps, kv, n, step)
        if self.weights.bias is not None:
            seen = seen + self.weights.bias
        return self.ops.linear((c * seen).to(x_PH.dtype), *self.weights.out)


def convolved(
    inputs_PC: Tensor, taps: Tensor, kv: KVStorage, n: int, step: Step, first: int = 0
) -> Tensor:
    """[P, C] of inputs that are channels `first` and on of the running state of layer `n`. taps: see `ConvWeights`."""
    seen, own = torch.zeros_like(inputs_PC), slice(first, first + inputs_PC.shape[1])
    assert kv.running is not None
    (states,), (rings,) = kv.running.state[n], kv.running.rows[n]
    for running, rows, parents in step.rows.each_running():
        ring = rings[running.place, :, own]
        seen[rows] = _of_request(running, parents, inputs_PC[rows], taps, states[..., own], ring)
    return seen


def _of_request(
    running: RunningRows, parents: Ints, fresh: Tensor, taps: Tensor, states: Tensor, ring: Tensor
) -> Tensor:
    """[t, channels] of the rows of one request, whose inputs are `fresh`. states, ring: see `RunningStates`."""
    text = torch.cat((states[running.place], ring[torch.from_numpy(running.before)], fresh))
    base, kept = len(text) - len(fresh), len(taps) - 1
    above = np.arange(-1, len(text) - 1)
    above[base:] = np.where(parents < 0, base - 1, base + parents)
    at, seen = np.arange(base, len(text)), torch.zeros_like(fresh)
    for tap in taps:
        seen = seen + text[torch.from_numpy(at)] * tap
        at = above[at]
    for count, place in (*running.snapshots, (running.folds + running.stable, running.place)):
        states[place] = text[count : count + kept]
    later = torch.from_numpy(running.at[running.stable :])
    ring[later] = fresh[running.stable :]
    return seen
