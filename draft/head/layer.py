"""What a draft head computes, in training and in drafting alike; weights come from outside.

EAGLE: Li et al., arXiv 2401.15077 (a head over the target's hidden states); EAGLE-3: arXiv
2503.01840 (several layers fused, own outputs fed back in training). The projection of embedding and
hidden state in front of a whole decoder layer is that of DeepSeek-V3's multi-token prediction
modules, arXiv 2412.19437.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fastslow.draft.head.config import HeadConfig

Linear = Callable[[str, Tensor], Tensor]
"""(name of a matrix [n, m], x [..., m]) -> x @ matrix.T [..., n]."""


class HeadLayer:
    """The arithmetic of one step of the head; attention itself is the caller's.

    Args:
        config: its shape.
        norms: name -> weight [H], the names of `config.NORMS`.
        linear: applies the matrices of `config.MATRICES`, and "head": [D, H] of the draft
            vocabulary.
    """

    def __init__(self, config: HeadConfig, norms: Mapping[str, Tensor], linear: Linear) -> None:
        self.config = config
        self._norms = norms
        self._linear = linear

    def fuse(self, features: Tensor) -> Tensor:
        """Hidden states [..., H] from features [..., F]; each layer's are brought to one size."""
        sizes = features.view(*features.shape[:-1], -1, self.config.hidden)
        level = F.rms_norm(sizes, (self.config.hidden,), eps=self.config.eps)
        return self._linear("fuse", level.flatten(-2))

    def enter(self, embedded: Tensor, hidden: Tensor) -> Tensor:
        """The layer's input [..., H]: a token's embedding, and the hidden state before it."""
        pair = (self._norm("embedding_norm", embedded), self._norm("hidden_norm", hidden))
        return self._linear("entry", torch.cat(pair, -1))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [..., heads, head_dim], keys and values [..., kv_heads, head_dim]."""
        c = self.config
        mixed = self._linear("qkv", self._norm("attention_norm", x))
        mixed = mixed.view(*mixed.shape[:-1], -1, c.head_dim)
        q, k, v = torch.split(mixed, [c.heads, c.kv_heads, c.kv_heads], -2)
        return turn(q, cos, sin), turn(k, cos, sin), v

    def leave(self, x: Tensor, seen: Tensor) -> Tensor:
        """The layer's output [..., H], which is the next step's hidden state."""
        x = x + self._linear("out", seen)
        gate, up = self._linear("gate_up", self._norm("mlp_norm", x)).chunk(2, -1)
        return x + self._linear("down", F.silu(gate) * up)

    def ready(self, hidden: Tensor) -> Tensor:
        """What the head over the vocabulary multiplies, [..., H]."""
        return self._norm("norm", hidden)

    def logits(self, ready: Tensor) -> Tensor:
        """[..., D] from what `ready` gave."""
        return self._linear("head", ready)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.rms_norm(x, (self.config.hidden,), self._norms[name], self.config.eps)


def rotation(config: HeadConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin f32 [..., 1, head_dim / 2] for positions [...]."""
    powers = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    angles = positions.double()[..., None] * config.rope_theta**-powers
    return angles.cos().float()[..., None, :], angles.sin().float()[..., None, :]


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864), first and second half of a head as pairs."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
