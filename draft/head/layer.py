"""The arithmetic of a draft head's layer, in training and in drafting alike, and its keys and values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastslow.draft.head.config import HeadConfig
from fastslow.engine.model.norms import plain_norm, residual, same

Linear = Callable[[str, Tensor], Tensor]
"""(name of a matrix [n, m], x [..., m]) -> x @ matrix.T [..., n]."""
GROW = 64  # rows


class HeadLayer:
    """The head's layer but for attention, the caller's part. norms: name -> weight [H], the names of `config.NORMS`.
    linear: applies the matrices of `config.MATRICES`, and "head" [D, H]."""

    def __init__(self, config: HeadConfig, norms: Mapping[str, Tensor], linear: Linear) -> None:
        self.config = config
        self._norms = norms
        self._linear = linear

    def fuse(self, features: Tensor) -> Tensor:
        """Hidden states [..., H] from features [..., F]; the features of each layer are normed first."""
        sizes = features.view(*features.shape[:-1], -1, self.config.hidden)
        level = plain_norm(sizes, self.config.eps)
        return self._linear("fuse", level.flatten(-2))

    def input(self, embedded: Tensor, hidden: Tensor) -> Tensor:
        """The layer's input [..., H], from a token's embedding and the hidden state before it."""
        pair = (self._norm("embedding_norm", embedded), self._norm("hidden_norm", hidden))
        return self._linear("entry", torch.cat(pair, -1))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [..., heads, head_dim], keys and values [..., kv_heads, head_dim]."""
        c = self.config
        mixed = self._linear("qkv", self._norm("attention_norm", x))
        mixed = mixed.unflatten(-1, (c.heads + 2 * c.kv_heads, -1))
        q, k, v = torch.split(mixed, [c.heads, c.kv_heads, c.kv_heads], -2)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def output(self, x: Tensor, attended: Tensor) -> Tensor:
        """The next step's hidden state [..., H], from the layer's input and what attention gave."""
        return after_attention(x, attended, self._linear, partial(self._norm, "mlp_norm"))

    def final_norm(self, hidden: Tensor) -> Tensor:
        """[..., H], for `logits`."""
        return self._norm("norm", hidden)

    def logits(self, normed: Tensor) -> Tensor:
        """[..., D] from what `final_norm` gave."""
        return self._linear("head", normed)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return plain_norm(x, self.config.eps, self._norms[name])


def after_attention(
    x: Tensor, attended: Tensor, linear: Linear, mlp_norm: Callable[[Tensor], Tensor]
) -> Tensor:
    """A layer's output [..., H] from its input, and from what attention gave before its last matrix."""

    def mlp(fresh: Tensor) -> Tensor:
        gate, up = linear("gate_up", fresh).chunk(2, -1)
        return linear("down", F.silu(gate) * up)

    x = residual(x, same, lambda _: linear("out", attended), same)
    return residual(x, mlp_norm, mlp, same)


def rotation(config: HeadConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin f32 [..., 1, head_dim / 2] for positions [...]."""
    powers = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    angles = positions.double()[..., None] * config.rope_theta**-powers
    return angles.cos().float()[..., None, :], angles.sin().float()[..., None, :]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864), first and second half of a head as pairs."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class HeadKV:
    """A text's keys and values. A draft's rows are dropped when the next rows are committed. Rows may be missing
    between others, as of a prompt that was never read: positions stay right. position: of the next committed row, in
    the text."""

    def __init__(self, config: HeadConfig, position: int) -> None:
        self.position = position
        self._config = config
        self._ratio = config.heads // config.kv_heads
        self._scale = config.head_dim**-0.5
        self._kv = torch.empty(2, config.kv_heads, GROW, config.head_dim)
        self._committed = 0
        self._parents: list[int] = []  # of the draft's rows
        self._depths: list[int] = []

    def prepend(self, k_NKD: Tensor, v_NKD: Tensor) -> None:
        """Rows before the text that take no position in it; only before the first row of the text."""
        if not self._committed:
            self._write(0, k_NKD, v_NKD)
            self._committed = len(k_NKD)

    def draft_positions(self, parents: Sequence[int]) -> list[int]:
        """Positions of draft rows, from their parents' row numbers; -1 = the last committed row."""
        return [self.position + (0 if p < 0 else self._depths[p] + 1) for p in parents]

    def commit(self, k_NKD: Tensor, v_NKD: Tensor) -> None:
        self.drop_draft()
        self._write(self._committed, k_NKD, v_NKD)
        self._committed += len(k_NKD)
        self.position += len(k_NKD)

    def fork(self, drop: int) -> HeadKV:
        """A copy without the last `drop` committed rows."""
        copy = HeadKV(self._config, self.position - drop)
        copy._committed = max(0, self._committed - drop)
        copy._kv = self._kv[:, :, : max(copy._committed, GROW)].clone()
        return copy

    def skip(self, position: int) -> None:
        """The next committed row has this position; the rows between are missing."""
        self.drop_draft()
        self.position = position

    def drop_draft(self) -> None:
        self._parents.clear()
        self._depths.clear()

    def attend(self, q_QHD: Tensor) -> Tensor:
        """[Q, H * D] for queries of the last committed row."""
        return self._attend(q_QHD, self._committed, None)

    def draft(self, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, parents: Sequence[int]) -> Tensor:
        """Append rows of a draft, each after its parent, and attend: [N, H * D]."""
        before = len(self._parents)
        self._depths += [0 if p < 0 else self._depths[p] + 1 for p in parents]
        self._parents += parents
        self._write(self._committed + before, k_NKD, v_NKD)
        end = self._committed + len(self._parents)
        if len(parents) == 1 and self._parents == list(range(-1, len(self._parents) - 1)):
            return self._attend(q_NHD, end, None)  # a chain reads every row
        mask = torch.zeros(len(parents), len(self._parents), dtype=torch.bool)
        for row in range(len(parents)):
            at = before + row
            while at >= 0:
                mask[row, at] = True
                at = self._parents[at]
        return self._attend(q_NHD, end, mask)

    def _attend(self, q_QHD: Tensor, end: int, mask_QN: Tensor | None) -> Tensor:
        first = max(0, end - self._config.window)
        k_KSD, v_KSD = self._kv[:, :, first:end]
        count, heads, size = q_QHD.shape
        q = q_QHD.transpose(0, 1).reshape(-1, self._ratio * count, size)  # query heads by key head
        scores = (q @ k_KSD.transpose(1, 2)) * self._scale
        if mask_QN is not None:
            hidden = F.pad(~mask_QN, (max(0, self._committed - first), 0))[:, -(end - first) :]
            scores.masked_fill_(hidden.repeat(self._ratio, 1), -torch.inf)
        out: Tensor = torch.softmax(scores, -1) @ v_KSD
        return out.reshape(heads, count, size).transpose(0, 1).flatten(1)

    def _write(self, first: int, k_NKD: Tensor, v_NKD: Tensor) -> None:
        end = first + len(k_NKD)
        room = self._kv.shape[2]
        if end > room:
            self._kv = F.pad(self._kv, (0, 0, 0, max(room, end - room)))
        self._kv[0, :, first:end] = k_NKD.transpose(0, 1)
        self._kv[1, :, first:end] = v_NKD.transpose(0, 1)
