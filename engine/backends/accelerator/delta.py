"""A gated delta net whose requests run side by side: one operation for all rows that lie as far from their states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.kv.state.running import RunningStates
from fastslow.engine.model.mixers.delta import DeltaModule
from fastslow.engine.model.mixers.short_conv import ConvInputs, on_device
from fastslow.engine.model.parts import Step
from fastslow.engine.rows import Rows
from fastslow.engine.types import Ints


class RowDepths(ConvInputs):
    """Rows of a step after those of earlier steps that are not folded in, as indices on the device.

    order: all rows by depth, which is how many rows lie between one and its state; back: the way back. sizes: rows of
    each depth. depths: of each, which of the states before its rows follow (None: each its own), and which of those
    after them are copied where."""

    def __init__(self, rows: Rows, tail: int, device: torch.device) -> None:
        super().__init__(rows, tail, device)
        link, first = self.link, self.first
        depth = np.full(len(link), -1)
        for row in range(first, len(link)):
            depth[row] = depth[link[row]] + 1
        order, sizes = np.argsort(depth[first:], kind="stable"), np.bincount(depth[first:])
        back = np.argsort(order)
        place_of = np.concatenate((np.arange(first) // tail, back))  # among the rows of its depth
        place_of[first:] -= (np.cumsum(sizes) - sizes)[depth[first:]]
        parts: list[Sequence[int] | Ints] = [order, back]
        for alike in np.split(order + first, np.cumsum(sizes)[:-1]):
            kept = [n for n, row in enumerate(self.copied) if depth[row] == depth[alike[0]]]
            copied = place_of[[self.copied[n] for n in kept]]
            parts += [place_of[link[alike]], copied, [self.copied_to[n] for n in kept]]
        self.order, self.back, *there = on_device(parts, device)
        self.sizes = sizes.tolist()
        counts = (len(self.places), *self.sizes)
        each = zip(counts, parts[2::3], there[::3], there[1::3], there[2::3])
        self.depths = [
            (None if np.array_equal(own, np.arange(n)) else above, kept, to)
            for n, own, above, kept, to in each
        ]


class SideBySideDelta(DeltaModule):
    """A gated delta net by the formulas of `DeltaModule`, of many rows at once: equal to it up to rounding."""

    def _recur(
        self, projected: tuple[Tensor, Tensor, Tensor], kv: RunningStates, n: int, step: Step
    ) -> Tensor:
        m, (mixed, a, b) = self.mixer, projected
        p = step.once(m, lambda: RowDepths(step.rows, m.kernel - 1, step.device))
        (windows, heads), rings = kv.state[n], [ring.flatten(0, 1) for ring in kv.rows[n]]
        earlier, gates, keys, given = (ring.index_select(0, p.before) for ring in rings)
        inputs = torch.cat((windows.index_select(0, p.places).flatten(0, 1), earlier, mixed))
        seen = inputs.index_select(0, p.seen).view(-1, m.kernel, m.channels)
        query, key, value = self._heads((seen * self.conv).sum(1))
        gate = torch.cat((gates, (self.decay * F.softplus(a + self.dt_bias)).exp()))
        key = torch.cat((keys, key))
        # of earlier rows the delta alone is known, and of the step's all else
        new = m.of_values(query)[..., None], value[..., None], b.sigmoid()[..., None, None]
        padded = (F.pad(x, (0, 0, 0, 0, 0, 0, len(earlier), 0)) for x in new)
        given = F.pad(given, (0, 0, 0, 0, 0, len(mixed)))
        every = gate[..., None, None], m.of_values(key)[..., None], given, *padded
        each = zip(p.depths, *(x.index_select(0, p.order).split(p.sizes) for x in every))
        state, outs, deltas = heads.index_select(0, p.places), list[Tensor](), list[Tensor]()
        for (above, kept, to), g, k, d, q, v, beta in each:
            state = (state if above is None else state.index_select(0, above)) * g
            delta = d + (v[..., 0] - (state * k).sum(2)) * beta[..., 0]
            state = state + k * delta[:, :, None]
            outs.append((state * q).sum(2))
            deltas.append(delta)
            if len(to):
                heads.index_copy_(0, to, state.index_select(0, kept))
        out, delta = (torch.cat(x).index_select(0, p.back) for x in (outs, deltas))
        if len(p.to):
            held = inputs.index_select(0, p.held).view(-1, m.kernel - 1, m.channels)
            windows.index_copy_(0, p.to, held)
        if len(p.later):
            for ring, x in zip(rings, (inputs[-len(key) :], gate, key, delta), strict=True):
                ring.index_copy_(0, p.later_to, x.index_select(0, p.later))
        return out[len(earlier) :]
