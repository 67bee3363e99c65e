"""Rotary position embedding: inverse frequencies and their scalings, and angles by position.

RoPE: Su et al., arXiv 2104.09864. YaRN: Peng et al., arXiv 2309.00071. Dynamic NTK and Llama 3 scaling
as the public checkpoints that carry those names define them.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fastslow.engine.model.shape import DecoderShape, RopeScaling
from fastslow.engine.types import Floats, Ints, Rows

FIRST = 1024  # positions of the first table


@lru_cache(maxsize=256)
def inverse_frequencies(config: DecoderShape, max_len: int = 0) -> Tensor:
    """float64 [head_dim / 2], radians per position, on the CPU.

    max_len: tokens, the longest text the request may become. Only dynamic NTK looks at it, so that a
    request keeps one base from its first token to its last; <= 0 means unscaled."""
    turning = _turning(config, max_len)
    still = torch.zeros(config.head_dim // 2 - len(turning), dtype=torch.float64)
    return torch.cat(
        (turning, still)
    )  # `rotary_order` puts dims that stand still where the zeros are


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
        most = int(positions.max()) + 1
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
