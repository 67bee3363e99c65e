"""Rotary position embedding: inverse frequencies and their scalings.

RoPE: Su et al., arXiv 2104.09864. Dynamic NTK and Llama 3 scaling as the public checkpoints that
carry those names define them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.types import Ints


@lru_cache(maxsize=256)
def inverse_frequencies(config: ModelConfig, reach: int = 0) -> Tensor:
    """float64 [head_dim / 2], radians per position, on the CPU.

    reach: tokens, the longest text the request may become. Only dynamic NTK looks at it, so that a
    request keeps one base from its first token to its last; <= 0 means unscaled.
    """
    dim, theta, scaling = config.head_dim, config.rope_theta, config.rope_scaling
    if config.extras is not None:  # the loader puts dims that stand still where these zeros are
        still = torch.zeros((dim - config.extras.rotary_dim) // 2, dtype=torch.float64)
        turning = replace(config, head_dim=config.extras.rotary_dim, extras=None)
        return torch.cat((inverse_frequencies(turning, reach), still))
    if scaling is not None and scaling.kind == "dynamic":
        length = max(reach, config.max_positions)
        stretch = scaling.factor * length / config.max_positions - (scaling.factor - 1)
        theta *= stretch ** (dim / (dim - 2))
    frequencies = theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if scaling is None or scaling.kind == "dynamic":
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns = scaling.original_max_positions * frequencies / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * keep + frequencies / scaling.factor * (1 - keep)


def rotation(
    config: ModelConfig, positions: Ints, reach: Ints, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines, each [T, 1, head_dim] in `dtype` (float32 or float64).

    positions and reach: int64 [T], per row. The first half of the sines is negated, so that a
    rotation is `x * cos + roll(x, head_dim / 2) * sin` (half-split "rotate_half").
    """
    reaches = reach.tolist() if config.dynamic_rope else [0]
    frequencies = torch.stack([inverse_frequencies(config, r) for r in reaches]).to(device, dtype)
    angles = torch.from_numpy(positions).to(device, dtype)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None]
