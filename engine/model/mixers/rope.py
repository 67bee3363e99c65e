"""Rotary positions.

RoPE: Su et al., arXiv 2104.09864. YaRN: Peng et al., arXiv 2309.00071. Dynamic NTK and Llama 3 scaling as the
public checkpoints that carry those names define them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from fastslow.engine.model.ops import wide
from fastslow.engine.model.parts import Step
from fastslow.engine.rows import Rows
from fastslow.engine.types import Floats, Ints

ROTARY_LAYOUTS = ("halves-first", "interleaved-first", "halves-last")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Scaling of rotary frequencies: `kind` is "linear", "dynamic", "llama3", "yarn", "longrope", "factors" or
    "proportional".

    llama3: wavelengths above original_max_positions / low_frequency_factor are stretched by `factor`, those
    below original_max_positions / high_frequency_factor are left alone, those between are blended. yarn (Peng
    et al., arXiv 2309.00071): the same by turns in original_max_positions, between `slow_turns` and
    `fast_turns`, between whole pairs where `whole_pairs`; cosines and sines are multiplied by
    `attention_factor`. factors: each pair's frequency is divided by its factor, as GGUF files have them. longrope
    (Ding et al., arXiv 2402.13753): the same by `long_factors` in requests that may become longer than
    original_max_positions, by `factors` in others; with `attention_factor`. proportional: the
    first `pairs` pairs (i, i + dim / 2) of the head turn as those of a whole rotation, stretched by `factor`; the
    others stand still (frequency 0). `Rope.width` is 0 then, and dims stay in their order."""

    kind: str
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_max_positions: int = 8192
    fast_turns: float = 32.0
    slow_turns: float = 1.0
    whole_pairs: bool = True
    attention_factor: float = 1.0
    factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    pairs: int = 0

    @property
    def lists(self) -> tuple[tuple[float, ...], ...]:
        """Its lists of one factor for each pair."""
        every = {"factors": (self.factors,), "longrope": (self.factors, self.long_factors)}
        return every.get(self.kind, ())


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotation of heads of `dim` dims. max_positions: tokens that it was made for, without scaling.

    width: dims that are rotated; 0: all. layout: these are the first or the last dims; pairs lie side by side
    ("interleaved"), or half of the rotated dims apart ("halves")."""

    dim: int
    theta: float
    max_positions: int
    scaling: RopeScaling | None = None
    width: int = 0
    layout: str = "halves-first"

    @property
    def rotated(self) -> int:
        """Dims that are rotated."""
        return self.width or self.dim

    @property
    def order(self) -> list[int]:
        """For each dim here, the dim of the file's heads, where pairs lie half a head apart and dims that stand still
        have frequency 0. Moving dims of queries and keys alike changes no score."""
        turning, half = self.rotated // 2, self.dim // 2
        first = self.dim - 2 * turning if self.layout == "halves-last" else 0
        if self.layout == "interleaved-first":
            pairs = [(2 * i, 2 * i + 1) for i in range(turning)]
        else:
            pairs = [(first + i, first + turning + i) for i in range(turning)]
        still = [d for d in range(self.dim) if not first <= d < first + 2 * turning]
        left, right = still[: half - turning], still[half - turning :]
        return [*(a for a, _ in pairs), *left, *(b for _, b in pairs), *right]

    @property
    def dynamic(self) -> bool:
        """True where a row depends on the longest text that its request may become."""
        return self.scaling is not None and self.scaling.kind in ("dynamic", "longrope")

    def length(self, max_len: int) -> int:
        """Return what decides the frequencies of a request that may become this long; 0: no length does."""
        if not self.dynamic or self.scaling is None:
            return 0
        if self.scaling.kind == "dynamic":
            return max(max_len, self.max_positions)
        original = self.scaling.original_max_positions
        return min(max(max_len, original), original + 1)

    @property
    def context(self) -> int:
        """The longest text in tokens."""
        scaling = self.scaling
        if scaling is None or scaling.kind in ("llama3", "factors", "longrope", "proportional"):
            return self.max_positions
        if scaling.kind == "yarn":
            return max(self.max_positions, int(scaling.original_max_positions * scaling.factor))
        return int(self.max_positions * scaling.factor)

    def misfits(self) -> Iterator[str]:
        """Yield a sentence for each field that does not fit the others."""
        scaling, half = self.scaling, self.rotated // 2
        for factors in () if scaling is None else scaling.lists:
            if len(factors) != half:
                yield (
                    f"rope_scaling has {len(factors)} factors, but half a head of {self.rotated} "
                    "rotates"
                )
        if self.width % 2 or not 0 <= self.width <= self.dim:
            yield f"rotary_dim {self.width} must be even and at most {self.dim}"
        if scaling is not None and scaling.kind == "dynamic" and self.rotated < 4:
            yield f"dynamic rope_scaling needs at least 4 dims that rotate, not {self.rotated}"
        if self.layout not in ROTARY_LAYOUTS:
            known = ", ".join(ROTARY_LAYOUTS)
            yield f"rotary_layout {self.layout!r} is not one of {known}"

    def rotation(
        self, positions: Ints, max_len: Ints, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines, each [T, 1, dim] in `dtype`; of dims that turn, times yarn's attention factor.

        positions and max_len: int64 [T]. The first half of the sines is negated, so that a rotation is
        `x * cos + roll(x, dim / 2) * sin` (half-split "rotate_half")."""
        max_lens = map(self.length, max_len.tolist()) if self.dynamic else [0]
        frequencies = torch.stack([inverse_frequencies(self, r) for r in max_lens])
        frequencies = frequencies.to(device, dtype)
        angles = torch.from_numpy(positions).to(device, dtype)[:, None] * frequencies
        cos, sin = angles.cos(), angles.sin()
        if self.scaling is not None and self.scaling.attention_factor != 1:
            turning = self.rotated // 2  # dims that stand still stay as they are
            cos[..., :turning] *= self.scaling.attention_factor
            sin[..., :turning] *= self.scaling.attention_factor
        return torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None]


def rotation(rope: Rope, step: Step) -> tuple[Tensor, Tensor]:
    """Cosines and sines of a step's rows, padding too, see `Rope.rotation`."""

    def make() -> tuple[Tensor, Tensor]:
        rows, spare = step.rows, (0, step.padded - step.count)
        max_len = np.pad(np.repeat(rows.max_len, np.diff(rows.starts)), spare)
        positions = np.pad(rows.positions, spare)
        return rope.rotation(positions, max_len, wide(step.dtype), step.device)

    return step.once(rope, make)


@lru_cache(maxsize=256)
def inverse_frequencies(rope: Rope, max_len: int = 0) -> Tensor:
    """float64 [dim / 2], radians per position, on the CPU.

    max_len: tokens, the longest text the request may become. Only dynamic NTK and longrope look at it, so that a
    request keeps its frequencies from its first token to its last; <= 0 means unscaled."""
    turning = _turning(rope, max_len)
    still = torch.zeros(rope.dim // 2 - len(turning), dtype=torch.float64)
    return torch.cat((turning, still))  # `Rope.order` puts dims that stand still at the zeros


def _turning(rope: Rope, max_len: int) -> Tensor:
    dim, theta, scaling = rope.rotated, rope.theta, rope.scaling
    if scaling is not None and scaling.kind == "dynamic":
        length = max(max_len, rope.max_positions)
        stretch = scaling.factor * length / rope.max_positions - (scaling.factor - 1)
        theta *= stretch ** (dim / (dim - 2))
    frequencies = theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if scaling is None or scaling.kind == "dynamic":
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "proportional":
        turning = torch.arange(len(frequencies)) < scaling.pairs
        return torch.where(turning, frequencies / scaling.factor, 0.0)
    if scaling.kind in ("factors", "longrope"):
        far = scaling.kind == "longrope" and max_len > scaling.original_max_positions
        factors = scaling.long_factors if far else scaling.factors
        return frequencies / torch.tensor(factors, dtype=torch.float64)
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


FIRST = 1024  # positions of the first table


class Rotary:
    """Tables of cosines and sines of several rotations. starts: where the angles of each begin in a row; None: -1."""

    def __init__(self, *ropes: Rope) -> None:
        self._tables = [_Table(rope) for rope in ropes]
        ends = accumulate(rope.dim // 2 for rope in ropes)
        *begins, self.width = 0, *ends
        self.starts = dict(zip((None, *ropes), (-1, *begins), strict=True))

    def at(self, rows: Rows) -> tuple[Floats, Floats]:
        """float32 [T, width] each."""
        if len(self._tables) == 1:
            return self._tables[0].at(rows)
        each = [table.at(rows) for table in self._tables]
        none = np.empty((len(rows.tokens), 0), dtype=np.float32)
        cos, sin = (
            (np.concatenate((none, *some), 1) for some in zip(*each)) if each else (none, none)
        )
        return cos, sin


class _Table:
    """Cosines and sines by position, which grow with the texts."""

    def __init__(self, rope: Rope) -> None:
        self._rope = rope
        self._cos: Floats = np.empty((0, rope.dim // 2), dtype=np.float32)
        self._sin = self._cos

    def at(self, rows: Rows) -> tuple[Floats, Floats]:
        """float32 [T, dim / 2] each."""
        positions = rows.positions
        if self._rope.dynamic:  # the base depends on how long a request may become
            return self._computed(positions, np.repeat(rows.max_len, np.diff(rows.starts)))
        most = max(positions.tolist(), default=0) + 1
        if most > len(self._cos):
            size = max(FIRST, 1 << (most - 1).bit_length())
            all_of_them = np.arange(size)
            self._cos, self._sin = self._computed(all_of_them, np.zeros_like(all_of_them))
        return self._cos[positions], self._sin[positions]

    def _computed(self, positions: Ints, max_len: Ints) -> tuple[Floats, Floats]:
        half, cpu = self._rope.dim // 2, torch.device("cpu")
        cos, sin = self._rope.rotation(positions, max_len, torch.float32, cpu)
        return _half(cos[:, 0, :half]), _half(sin[:, 0, half:])


def _half(values: Tensor) -> Floats:
    return np.ascontiguousarray(values.numpy())
