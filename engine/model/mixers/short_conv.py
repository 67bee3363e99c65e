"""A gated short convolution, whose state is the last inputs of a text. LFM2: Liquid AI, arXiv 2511.23404.

Sums run tap by tap, the newest row first, of products and sums alone: a row has the same bits in any chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastslow.engine.kv.state.layout import UNFOLDED, RunningState
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.ops import Linear, Ops, wide
from fastslow.engine.model.parts import Step, WeightReader, too_small
from fastslow.engine.model.tensor_spec import TensorSpec, linear
from fastslow.engine.rows import Rows
from fastslow.engine.types import Ints


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

    def load(self, prefix: str, reader: WeightReader) -> ConvModule:
        own, sums = f"{prefix}.conv", wide(reader.dtype)
        return ConvModule(
            reader.ops,
            reader.matrix(f"{own}.in_proj", bias=self.bias),
            read_taps(f"{own}.conv.weight", reader),
            reader.plain(f"{own}.conv.bias", dtype=sums) if self.bias else None,
            reader.matrix(f"{own}.out_proj", bias=self.bias),
        )


def read_taps(name: str, reader: WeightReader) -> Tensor:
    """See `ConvModule`."""
    return reader.plain(name, dtype=wide(reader.dtype))[:, 0].T.flip(0).contiguous()


@dataclass(slots=True)
class ConvModule:
    """A gated short convolution on plain torch. entry: b, c and x below each other. taps: [kernel, channels], of a row
    itself first. bias: [channels]."""

    ops: Ops
    entry: Linear
    taps: Tensor
    bias: Tensor | None
    out: Linear

    def __call__(self, x_PH: Tensor, kv: KVStorage, n: int, step: Step) -> Tensor:
        """[P, hidden]. Folds in what was accepted since the last step, and the rows that are final."""
        b, c, x = self.ops.linear(x_PH, *self.entry).to(wide(x_PH.dtype)).chunk(3, -1)
        seen = convolved(b * x, self.taps, kv, n, step)
        if self.bias is not None:
            seen = seen + self.bias
        return self.ops.linear((c * seen).to(x_PH.dtype), *self.out)


class ConvInputs:
    """Inputs of convolutions in a step, all requests side by side: those that states hold, then those of earlier rows
    that are not folded in, then the step's rows. As indices on the device:

    places: of the requests' states. before: ring rows of the earlier rows. seen: the last `tail` inputs before each row
    of the step, and its own. held: the last `tail` ones of states that are copied to places `to`. later: of
    all rows, earlier ones first, those that are not folded in, and `later_to` the ring rows that take them.

    On the host: first, the number of those that states hold; own, of all before the step's rows; link, to each input
    the one before it; copied, the last input of each state that is copied, and `copied_to` its place."""

    def __init__(self, rows: Rows, tail: int, device: torch.device) -> None:
        """tail: inputs of each request that a state holds."""
        work, count = list(rows.each_running()), len(rows.tokens)
        self.first = tail * len(work)
        self.own = self.first + sum(len(running.before) for running, *_ in work)
        self.link = np.arange(-1, self.own + count - 1)
        before, later, later_to = list[int](), list[int](), list[int]()
        self.copied, self.copied_to = list[int](), list[int]()
        for b, (running, some, parents) in enumerate(work):
            line = [self.first + len(before) + n for n in range(len(running.before))]
            self.link[line[:1]] = (b + 1) * tail - 1
            mine = range(self.own, self.own + count)[some]
            last = [(b + 1) * tail - 1, *line][-1]
            self.link[mine] = np.where(parents < 0, last, mine[0] + parents)
            line += mine
            for done, place in (
                *running.snapshots,
                (running.folds + running.stable, running.place),
            ):
                self.copied += line[done - 1 : done]
                self.copied_to += [place] * (done > 0)
            ring = running.place * UNFOLDED
            before += (ring + running.before).tolist()
            later += [row - self.first for row in mine[running.stable :]]
            later_to += (ring + running.at[running.stable :]).tolist()
        seen = self._last(np.arange(self.own, len(self.link)), tail + 1)
        held = self._last(self.copied, tail)
        parts = [x.place for x, *_ in work], before, seen, held, self.copied_to, later, later_to
        there = on_device(parts, device)
        self.places, self.before, self.seen, self.held, self.to, self.later, self.later_to = there

    def _last(self, rows: Sequence[int] | Ints, count: int) -> Ints:
        """The last `count` inputs up to each row's own, one row after the other."""
        found = [np.asarray(rows, dtype=np.int64)]
        while len(found) < count:
            found.append(self.link[found[-1]])
        return np.stack(found[::-1], 1).flatten()


def on_device(parts: Sequence[Sequence[int] | Ints], device: torch.device) -> tuple[Tensor, ...]:
    """Whole numbers on the device, in one copy."""
    flat = [np.asarray(part, dtype=np.int64) for part in parts]
    there = torch.from_numpy(np.concatenate(flat)).to(device)
    return torch.split(there, [len(part) for part in flat])


def convolved(
    inputs_PC: Tensor, taps: Tensor, kv: KVStorage, n: int, step: Step, first: int = 0
) -> Tensor:
    """[P, C] of inputs that are channels `first` and on of the running state of layer `n`. taps: see `ConvModule`."""
    assert kv.running is not None
    (states,), (rings,) = kv.running.state[n], kv.running.rows[n]
    tail, own = len(taps) - 1, slice(first, first + inputs_PC.shape[1])
    states, rings = states[..., own], rings.flatten(0, 1)[:, own]
    p = step.once(("inputs", tail), lambda: ConvInputs(step.rows, tail, step.device))
    held, before = states.index_select(0, p.places), rings.index_select(0, p.before)
    every = torch.cat((held.flatten(0, 1), before, inputs_PC))
    each = every.index_select(0, p.seen).unflatten(0, (-1, len(taps)))
    seen = torch.zeros_like(inputs_PC)
    for i, tap in enumerate(taps, 1):
        seen[: step.count] += each[:, -i] * tap
    if len(p.to):
        states.index_copy_(0, p.to, every.index_select(0, p.held).unflatten(0, (-1, tail)))
    if len(p.later):
        rings.index_copy_(0, p.later_to, every[p.first :].index_select(0, p.later))
    return seen
