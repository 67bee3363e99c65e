"""Grouped-query attention over cached keys and values: who sees what, the layer itself, and rotary positions.

GQA: Ainslie et al., arXiv 2305.13245. The rows of a step are laid out as lines of attention: the
rows from the context to a leaf. A row's keys lie at their place in the text, whatever siblings stand
between them in the step, so its sums run in the order of plain decoding.

RoPE: Su et al., arXiv 2104.09864. YaRN: Peng et al., arXiv 2309.00071. Dynamic NTK and Llama 3 scaling as the
public checkpoints that carry those names define them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fastslow.engine.model.ops import Keys, Ops, Sinks, wide
from fastslow.engine.model.shape import DecoderShape, RopeScaling
from fastslow.engine.rows import Rows
from fastslow.engine.types import Floats, Ints

MAX_ROWS = 128  # a longer prompt chunk is cut, so that its first rows do not read its last keys
MAX_SCORES = 1 << 22  # keys times rows of the lines that share one call, to bound memory


@dataclass(frozen=True, slots=True)
class Line:
    """Rows of one path and the slots of all that the last of them sees; row i sees seen[i]."""

    rows: Ints
    slots: Ints
    seen: Ints

    def within(self, window: int, block: int) -> Line:
        """Without the whole blocks of keys before its first row's window, so that sums keep their blocks."""
        unseen = max(0, int(self.seen[0]) - window) // block * block if window else 0
        return Line(self.rows, self.slots[unseen:], self.seen - unseen)


@dataclass(frozen=True, slots=True)
class Lines:
    """L lines of P rows each, computed as one batch.

    gather: int64 [L * P], the row of the step that each row is, padding repeats the last; None: all in order.
    scatter, rows: int64 [R], the entries of [L * P] that are real, and the rows that they give."""

    count: int
    gather: Tensor | None
    scatter: Tensor | None
    rows: Tensor | None
    keys: Keys


def lines_of(rows: Rows) -> Iterator[Line]:
    """Every row of the step, in exactly one line."""
    for b, context in enumerate(rows.contexts):
        start, stop = int(rows.starts[b]), int(rows.starts[b + 1])
        for path, fresh in _paths(rows.parents[start:stop]):
            for first in range(len(path) - fresh, len(path), MAX_ROWS):
                last = min(first + MAX_ROWS, len(path))
                own = start + path[:last]
                yield Line(
                    own[first:],
                    np.concatenate((context, rows.slots[own])),
                    len(context) + np.arange(first + 1, last + 1),
                )


def _paths(parents: Ints) -> Iterator[tuple[Ints, int]]:
    """The rows from the root to every leaf, and how many at its end no earlier leaf had."""
    count = len(parents)
    if np.array_equal(parents, np.arange(-1, count - 1)):
        if count:
            yield np.arange(count), count
        return
    taken: set[int] = set()
    for leaf in sorted(set(range(count)) - set(parents.tolist())):
        path = [leaf]
        while (parent := int(parents[path[-1]])) >= 0:
            path.append(parent)
        fresh = sum(row not in taken for row in path)
        taken.update(path)
        yield np.array(path[::-1]), fresh


def layout(
    rows: Rows,
    padded: int,
    ops: Ops,
    group: int,
    dtype: torch.dtype,
    device: torch.device,
    window: int = 0,
) -> list[Lines]:
    """The calls of attention that a step makes, alike for all layers of this window (0: sees all).

    padded: rows of the step with padding. group: query heads per KV head. dtype: of the scores."""
    alike: dict[tuple[int, int], list[Line]] = defaultdict(list)
    for whole in lines_of(rows):
        line = whole.within(window, ops.block)
        size = len(line.rows) + -len(line.rows) % ops.rows
        alike[size, -(-len(line.slots) // ops.block)].append(line)
    calls: list[Lines] = []
    for (size, blocks), lines in alike.items():
        most = max(1, MAX_SCORES // (size * blocks * ops.block))
        for i in range(0, len(lines), most):
            some = lines[i : i + most]
            keys = _keys(some, size, blocks, ops.block, group, dtype, device, window)
            if size == padded and np.array_equal(some[0].rows, np.arange(len(rows.tokens))):
                return [Lines(1, None, None, None, keys)]
            calls.append(_scattered(some, size, keys, device))
    return calls


def _scattered(lines: list[Line], size: int, keys: Keys, device: torch.device) -> Lines:
    gather = np.concatenate([np.pad(x.rows, (0, size - len(x.rows)), "edge") for x in lines])
    real = np.concatenate([i * size + np.arange(len(x.rows)) for i, x in enumerate(lines)])
    return Lines(
        len(lines),
        torch.from_numpy(gather).to(device),
        torch.from_numpy(real).to(device),
        torch.from_numpy(gather[real]).to(device),
        keys,
    )


def _keys(
    lines: list[Line],
    size: int,
    blocks: int,
    block: int,
    group: int,
    dtype: torch.dtype,
    device: torch.device,
    window: int,
) -> Keys:
    # a padding row sees one key; a padding key is the line's own, so that masked ones stay finite
    seen = np.stack([np.pad(x.seen, (0, size - len(x.seen)), constant_values=1) for x in lines])
    places, seen = np.arange(blocks * block).reshape(blocks, 1, block), seen[:, None, :, None]
    hidden = places >= seen
    if window:
        hidden |= places < seen - window
    bias = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(torch.from_numpy(hidden), -torch.inf)
    bias = bias.repeat_interleave(group, dim=2)[:, None].to(device)
    if len(lines) == 1 and (run := as_run(lines[0].slots)) is not None:
        return Keys(run, bias)
    slots = [np.pad(x.slots, (0, blocks * block - len(x.slots)), "edge") for x in lines]
    return Keys(torch.from_numpy(np.concatenate(slots)).to(device), bias)


def as_run(slots: Ints) -> slice | None:
    """The slice that these slots are, if they are one ascending run."""
    if not len(slots):
        return None
    first = int(slots[0])
    if np.array_equal(slots, np.arange(first, first + len(slots))):
        return slice(first, first + len(slots))
    return None


@dataclass(slots=True)
class Step:
    """Inputs that all layers of one forward share: T real rows in a batch padded to P."""

    count: int  # T
    slots: slice | Tensor  # int64 [T], or the run that they are
    cos: Tensor
    sin: Tensor
    lines: Mapping[int, Sequence[Lines]]  # by window

    @classmethod
    def of(
        cls,
        rows: Rows,
        padded: int,
        config: DecoderShape,
        ops: Ops,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Step:
        """From the rows of a step. dtype: the model's."""
        sums, spare = wide(dtype), (0, padded - len(rows.tokens))
        max_len = np.pad(np.repeat(rows.max_len, np.diff(rows.starts)), spare)
        cos, sin = rotation(config, np.pad(rows.positions, spare), max_len, sums, device)
        group = config.heads // config.kv_heads
        lines = {
            window: layout(rows, padded, ops, group, sums, device, window)
            for window in set(config.windows) or {0}
        }
        run = as_run(rows.slots)
        slots = torch.from_numpy(rows.slots).to(device) if run is None else run
        return cls(len(rows.tokens), slots, cos, sin, lines)


@dataclass(slots=True)
class Attention:
    """q, k and v stacked into one matrix [(heads + 2 kv_heads) * head_dim, hidden]."""

    config: DecoderShape
    ops: Ops
    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    query_norm: Tensor | None = None  # [head_dim], before rotation
    key_norm: Tensor | None = None
    sinks: Sinks | None = None  # keys and values before every text
    sink_logits: Tensor | None = None  # [heads], float32 (float64 for float64)
    window: int = 0
    rotates: bool = True

    def __call__(self, x_PH: Tensor, k_SKD: Tensor, v_SKD: Tensor, step: Step) -> Tensor:
        """[P, hidden]. Writes the rows' keys and values at their slots, then attends."""
        q_PHD, k_PKD, v_PKD = self.project(x_PH, step.cos, step.sin)
        _store(k_SKD, step, k_PKD)
        _store(v_SKD, step, v_PKD)
        q_PHD = q_PHD * self.config.head_dim**-0.5
        seen = self._attend(q_PHD, k_SKD, v_SKD, step).to(x_PH.dtype)
        return self.out_proj(seen)

    def project(self, x_PH: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [P, heads, head_dim], keys and values [P, kv_heads, head_dim] of rows; the first two
        rotated, where the layer does so, and in float32 (float64 for float64)."""
        c = self.config
        mixed = self.ops.linear(x_PH, self.qkv, self.qkv_bias)
        mixed = mixed.view(-1, c.heads + 2 * c.kv_heads, c.head_dim)
        sides = mixed.split((c.heads, c.kv_heads, c.kv_heads), 1)
        for side, norm in zip(sides, (self.query_norm, self.key_norm), strict=False):
            if norm is not None:
                side.copy_(self.ops.rms_norm(side.contiguous(), norm, c.rms_norm_eps))
        turned = mixed[:, : c.heads + c.kv_heads].to(wide(x_PH.dtype))
        if self.rotates:
            turned = self.ops.rotate(turned, cos, sin)
        return turned[:, : c.heads], turned[:, c.heads :], mixed[:, c.heads + c.kv_heads :]

    def out_proj(self, seen_PI: Tensor) -> Tensor:
        return self.ops.linear(seen_PI, self.out, self.out_bias)

    def _attend(self, q_PHD: Tensor, k_SKD: Tensor, v_SKD: Tensor, step: Step) -> Tensor:
        several = step.lines[self.window]
        first = several[0]
        if first.gather is None:
            return self.ops.attend(q_PHD[None], k_SKD, v_SKD, self._with_sinks(first.keys))[0]
        out = q_PHD.new_zeros(q_PHD.shape[0], q_PHD[0].numel())
        for lines in several:
            assert lines.gather is not None and lines.rows is not None
            assert lines.scatter is not None
            q = q_PHD.index_select(0, lines.gather).view(lines.count, -1, *q_PHD.shape[1:])
            part = self.ops.attend(q, k_SKD, v_SKD, self._with_sinks(lines.keys)).flatten(0, 1)
            out.index_copy_(0, lines.rows, part.index_select(0, lines.scatter))
        return out

    def _with_sinks(self, keys: Keys) -> Keys:
        cap = self.config.score_cap
        if self.sinks is None and self.sink_logits is None and not cap:
            return keys
        return replace(keys, sinks=self.sinks, sink_logits=self.sink_logits, score_cap=cap)


def _store(cache_SKD: Tensor, step: Step, fresh_PKD: Tensor) -> None:
    fresh = fresh_PKD[: step.count]
    if isinstance(step.slots, slice):
        cache_SKD[step.slots].copy_(fresh)
    else:
        cache_SKD.index_copy_(0, step.slots, fresh.to(cache_SKD.dtype))


FIRST = 1024  # positions of the first table


@lru_cache(maxsize=256)
def inverse_frequencies(config: DecoderShape, max_len: int = 0) -> Tensor:
    """float64 [head_dim / 2], radians per position, on the CPU.

    max_len: tokens, the longest text the request may become. Only dynamic NTK looks at it, so that a
    request keeps one base from its first token to its last; <= 0 means unscaled."""
    turning = _turning(config, max_len)
    still = torch.zeros(config.head_dim // 2 - len(turning), dtype=torch.float64)
    return torch.cat((turning, still))  # `rotary_order` puts dims that stand still at the zeros


def _turning(config: DecoderShape, max_len: int) -> Tensor:
    dim, theta, scaling = config.rotary_width, config.rope_theta, config.rope_scaling
    if scaling is not None and scaling.kind == "dynamic":
        length = max(max_len, config.max_positions)
        stretch = scaling.factor * length / config.max_positions - (scaling.factor - 1)
        theta *= stretch ** (dim / (dim - 2))
    frequencies = theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if scaling is None or scaling.kind == "dynamic":
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "factors":
        return frequencies / torch.tensor(scaling.factors, dtype=torch.float64)
    if scaling.kind == "yarn":
        return _yarn(frequencies, theta, scaling)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns = scaling.original_max_positions * frequencies / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * keep + frequencies / scaling.factor * (1 - keep)


def _yarn(frequencies: Tensor, theta: float, scaling: RopeScaling) -> Tensor:
    """Pairs before the first place keep their frequency, those after the last are stretched."""
    dim = 2 * len(frequencies)
    first, last = (
        dim
        * math.log(scaling.original_max_positions / (turns * 2 * math.pi))
        / (2 * math.log(theta))
        for turns in (scaling.fast_turns, scaling.slow_turns)
    )
    if scaling.whole_pairs:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    width = last - first or 0.001
    places = torch.arange(len(frequencies), dtype=torch.float64)
    stretched = ((places - first) / width).clamp(0, 1)
    return frequencies * (1 - stretched) + frequencies / scaling.factor * stretched


def rotation(
    config: DecoderShape, positions: Ints, max_len: Ints, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines, each [T, 1, head_dim] in `dtype`, times yarn's attention factor.

    positions and max_len: int64 [T]. The first half of the sines is negated, so that a rotation is
    `x * cos + roll(x, head_dim / 2) * sin` (half-split "rotate_half")."""
    max_lens = max_len.tolist() if config.dynamic_rope else [0]
    frequencies = torch.stack([inverse_frequencies(config, r) for r in max_lens]).to(device, dtype)
    angles = torch.from_numpy(positions).to(device, dtype)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    if config.rope_scaling is not None and config.rope_scaling.attention_factor != 1:
        cos, sin = (
            cos * config.rope_scaling.attention_factor,
            sin * config.rope_scaling.attention_factor,
        )
    return torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None]


class Rotary:
    """A table of cosines and sines by position, which grows with the texts."""

    def __init__(self, config: DecoderShape) -> None:
        self._config = config
        scaling = config.rope_scaling
        self._moves = scaling is not None and scaling.kind == "dynamic"
        self._cos: Floats = np.empty((0, config.head_dim // 2), dtype=np.float32)
        self._sin = self._cos

    def at(self, rows: Rows) -> tuple[Floats, Floats]:
        """float32 [T, head_dim / 2] each."""
        positions = rows.positions
        if self._moves:  # the base depends on how long a request may become
            return self._computed(positions, np.repeat(rows.max_len, np.diff(rows.starts)))
        most = max(positions.tolist(), default=0) + 1
        if most > len(self._cos):
            size = max(FIRST, 1 << (most - 1).bit_length())
            all_of_them = np.arange(size)
            self._cos, self._sin = self._computed(all_of_them, np.zeros_like(all_of_them))
        return self._cos[positions], self._sin[positions]

    def _computed(self, positions: Ints, max_len: Ints) -> tuple[Floats, Floats]:
        half = self._config.head_dim // 2
        cos, sin = rotation(self._config, positions, max_len, torch.float32, torch.device("cpu"))
        return _half(cos[:, 0, :half]), _half(sin[:, 0, half:])


def _half(values: Tensor) -> Floats:
    return np.ascontiguousarray(values.numpy())
