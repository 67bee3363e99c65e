"""A head before its training: its vocabulary and its first weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from fastslow.draft.head.config import NORMS, HeadConfig
from fastslow.draft.head.target import read_ends
from fastslow.engine.model.config import ModelConfig


def draft_vocabulary(tokens: Iterable[int], size: int, vocabulary: int, least: int = 3) -> Tensor:
    """int32 [size], ascending: the tokens that come at least `least` times, the commonest first, then the
    lowest ids, which merge first."""
    common = [token for token, count in Counter(tokens).most_common(size) if count >= least]
    known = set(common)
    others = (token for token in range(vocabulary) if token not in known)
    filled = [*common, *(token for _, token in zip(range(size - len(common)), others))]
    return torch.tensor(sorted(filled), dtype=torch.int32)


def first_weights(
    folder: Path, layers: tuple[int, ...], tokens: Tensor, seed: int = 0
) -> tuple[HeadConfig, dict[str, Tensor]]:
    """An untrained f32 head: its output is the last of the fused `layers`, its own layer adds nothing yet.

    It takes the target's heads and widths, of a MoGE layer the shared expert's. tokens: int32 [D],
    the draft vocabulary.
    """
    c = ModelConfig.from_folder(folder)
    config = HeadConfig(
        hidden=c.hidden_size,
        heads=c.heads,
        kv_heads=c.kv_heads,
        head_dim=c.head_dim,
        neurons=c.shared_intermediate_size or c.intermediate_size,
        layers=layers,
        vocabulary=len(tokens),
        rope_theta=c.rope_theta,
        eps=c.rms_norm_eps,
    )
    shapes = config.shapes()
    rng = torch.Generator().manual_seed(seed)

    def random(name: str, size: float) -> Tensor:
        return torch.randn(shapes[name], generator=rng) * size

    table = {name: torch.ones(shapes[name]) for name in NORMS} | {"tokens": tokens}
    table["norm"] = read_ends(folder).norm.float()
    # The last layer's features come last, and so does the hidden state in front of the layer.
    for name in ("fuse", "entry"):
        table[name] = random(name, 0.02)
        table[name][:, -c.hidden_size :] += torch.eye(c.hidden_size)
    for name in ("qkv", "gate_up"):
        table[name] = random(name, c.hidden_size**-0.5)
    for name in ("out", "down"):
        table[name] = torch.zeros(shapes[name])
    return config, table
