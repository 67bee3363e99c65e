"""A gated delta net whose requests run side by side: one operation for all rows that lie as far from their states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.kv.state.layout import UNFOLDED
from fastslow.engine.kv.state.running import RunningStates
from fastslow.engine.model.mixers.delta import DeltaModule
from fastslow.engine.model.parts import Step
from fastslow.engine.rows import Rows
from fastslow.engine.types import Ints


class RowDepths:
    """Rows of a step after those of earlier steps that are not folded in, as indices on the device.

    places: of the requests' states. before: ring rows of the earlier rows. order: all rows by depth, which is how many
    rows lie between one and its state; back: the way back. seen: of the inputs that states hold and then of all rows',
    those that each row of the step sees. held: those that states hold when they are copied to places `to`. later: rows
    that are not folded in, and `later_to` the ring rows that take them. sizes: rows of each depth. depths: of each,
    which of the states before its rows follow (None: each its own), and which of those after them are copied where."""

    def __init__(self, rows: Rows, tail: int, device: torch.device) -> None:
        """tail: inputs of each request that a state holds."""
        work, count = list(rows.each_running()), len(rows.tokens)
        base = tail * len(work)
        own = base + sum(len(running.before) for running, *_ in work)
        link = np.arange(-1, own + count - 1)  # to each input the one before it
        before, later, later_to = list[int](), list[int](), list[int]()
        copied, to = list[int](), list[int]()
        for b, (running, some, parents) in enumerate(work):
            line = [base + len(before) + n for n in range(len(running.before))]
            link[line[:1]] = (b + 1) * tail - 1
            mine = range(own, own + count)[some]
            link[mine] = np.where(parents < 0, [(b + 1) * tail - 1, *line][-1], mine[0] + parents)
            line += mine
            for done, place in (
                *running.snapshots,
                (running.folds + running.stable, running.place),
            ):
                copied += line[done - 1 : done]
                to += [place] * (done > 0)
            ring = running.place * UNFOLDED
            before += (ring + running.before).tolist()
            later += [row - base for row in mine[running.stable :]]
            later_to += (ring + running.at[running.stable :]).tolist()
        depth = np.full(len(link), -1)
        for row in range(base, len(link)):
            depth[row] = depth[link[row]] + 1
        order, sizes = np.argsort(depth[base:], kind="stable"), np.bincount(depth[base:])
        back = np.argsort(order)
        place_of = np.concatenate((np.arange(base) // tail, back))  # among the rows of its depth
        place_of[base:] -= (np.cumsum(sizes) - sizes)[depth[base:]]
        seen, held = _inputs(link, np.arange(own, len(link)), tail + 1), _inputs(link, copied, tail)
        parts = [[x.place for x, *_ in work], before, order, back, seen, held, to, later, later_to]
        for alike in np.split(order + base, np.cumsum(sizes)[:-1]):
            kept = [n for n, row in enumerate(copied) if depth[row] == depth[alike[0]]]
            parts += [
                place_of[link[alike]],
                [place_of[copied[n]] for n in kept],
                [to[n] for n in kept],
            ]
        flat = [np.asarray(part, dtype=np.int64) for part in parts]
        there = torch.from_numpy(np.concatenate(flat)).to(device).split([len(x) for x in flat])
        self.places, self.before, self.order, self.back, self.seen = there[:5]
        self.held, self.to, self.later, self.later_to = there[5:9]
        self.sizes = sizes.tolist()
        states = np.arange(max(len(work), *self.sizes))
        self.depths = [
            (None if np.array_equal(own, states[:n]) else there[i], *there[i + 1 : i + 3])
            for n, own, i in zip((len(work), *self.sizes), flat[9::3], range(9, len(there), 3))
        ]


def _inputs(link: Ints, rows: Sequence[int] | Ints, count: int) -> Ints:
    """The last `count` inputs up to each row's own, one row after the other."""
    found = [np.asarray(rows, dtype=np.int64)]
    while len(found) < count:
        found.append(link[found[-1]])
    return np.stack(found[::-1], 1).flatten()


class SideBySideDelta(DeltaModule):
    """A gated delta net by the formulas of `DeltaModule`, of many rows at once: equal to it up to rounding."""

    def _recur(
        self, projected: tuple[Tensor, Tensor, Tensor], kv: RunningStates, n: int, step: Step
    ) -> Tensor:
        m, w, (mixed, a, b) = self.mixer, self.weights, projected
        p = step.once(m, lambda: RowDepths(step.rows, m.kernel - 1, step.device))
        (windows, heads), rings = kv.state[n], [ring.flatten(0, 1) for ring in kv.rows[n]]
        earlier, gates, keys, given = (ring.index_select(0, p.before) for ring in rings)
        inputs = torch.cat((windows.index_select(0, p.places).flatten(0, 1), earlier, mixed))
        seen = inputs.index_select(0, p.seen).view(-1, m.kernel, m.channels)
        query, key, value = self._heads((seen * w.conv).sum(1))
        gate = torch.cat((gates, (w.decay * F.softplus(a + w.dt_bias)).exp()))
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
