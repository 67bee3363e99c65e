"""Keys and values of one request in the head, and what drafting needs of a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fastslow.draft.head.config import HeadConfig
from fastslow.draft.head.state import DraftVocab, RequestVocab

GROW = 64  # rows


class Context:
    """Grows row by row; a draft's rows are forgotten when the next rows are committed.

    Rows may be missing between others (a prompt that was never seen): the head then knows less,
    and positions stay right.

    Args:
        config: of the head.

    Attributes:
        position: of the next committed row, in the request's text.
    """

    def __init__(self, config: HeadConfig, position: int) -> None:
        self.position = position
        self._config = config
        self._window = config.window
        self._ratio = config.heads // config.kv_heads
        self._scale = config.head_dim**-0.5
        self._kv = torch.empty(2, config.kv_heads, GROW, config.head_dim)
        self._committed = 0
        self._parents: list[int] = []  # of the draft's rows
        self._depths: list[int] = []

    @property
    def empty(self) -> bool:
        """Whether no row has come yet."""
        return not self._committed

    def precede(self, k_NKD: Tensor, v_NKD: Tensor) -> None:
        """Rows that stand before the text and take no place in it; before any other."""
        self._write(0, k_NKD, v_NKD)
        self._committed = len(k_NKD)

    def places(self, count: int) -> range:
        """Positions of the next `count` committed rows."""
        return range(self.position, self.position + count)

    def depths(self, parents: Sequence[int]) -> list[int]:
        """Positions of draft rows that follow these draft rows; -1 = the last committed row."""
        return [self.position + (0 if p < 0 else self._depths[p] + 1) for p in parents]

    def commit(self, k_NKD: Tensor, v_NKD: Tensor) -> None:
        """Append rows of the text."""
        self.forget()
        self._write(self._committed, k_NKD, v_NKD)
        self._committed += len(k_NKD)
        self.position += len(k_NKD)

    def fork(self, drop: int) -> Context:
        """A copy without the last `drop` committed rows."""
        copy = Context(self._config, self.position - drop)
        copy._committed = max(0, self._committed - drop)
        copy._kv = self._kv[:, :, : max(copy._committed, GROW)].clone()
        return copy

    def skip(self, position: int) -> None:
        """The next committed row stands there: those between were never shown."""
        self.forget()
        self.position = position

    def forget(self) -> None:
        """The draft's rows are no longer there."""
        self._parents.clear()
        self._depths.clear()

    def attend(self, q_QHD: Tensor) -> Tensor:
        """[Q, heads * head_dim]: queries of the last committed row."""
        return self._attend(q_QHD, self._committed, None)

    def draft(self, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, parents: Sequence[int]) -> Tensor:
        """Append rows of a draft, each after its parent; [N, heads * head_dim] of what they see."""
        before = len(self._parents)
        self._depths += [0 if p < 0 else self._depths[p] + 1 for p in parents]
        self._parents += parents
        self._write(self._committed + before, k_NKD, v_NKD)
        end = self._committed + len(self._parents)
        if len(parents) == 1 and self._parents == list(range(-1, len(self._parents) - 1)):
            return self._attend(q_NHD, end, None)  # a chain sees all there is
        mask = torch.zeros(len(parents), len(self._parents), dtype=torch.bool)
        for row in range(len(parents)):
            at = before + row
            while at >= 0:
                mask[row, at] = True
                at = self._parents[at]
        return self._attend(q_NHD, end, mask)

    def _attend(self, q_QHD: Tensor, end: int, mask_QN: Tensor | None) -> Tensor:
        first = max(0, end - self._window)
        k_KSD, v_KSD = self._kv[:, :, first:end]
        count, heads, size = q_QHD.shape
        q = q_QHD.transpose(0, 1).reshape(-1, self._ratio * count, size)  # query heads by key head
        scores = (q @ k_KSD.transpose(1, 2)) * self._scale
        if mask_QN is not None:
            hidden = F.pad(~mask_QN, (max(0, self._committed - first), 0))[:, -(end - first) :]
            scores.masked_fill_(hidden.repeat(self._ratio, 1), -torch.inf)
        seen: Tensor = torch.softmax(scores, -1) @ v_KSD
        return seen.reshape(heads, count, size).transpose(0, 1).flatten(1)

    def _write(self, first: int, k_NKD: Tensor, v_NKD: Tensor) -> None:
        end = first + len(k_NKD)
        room = self._kv.shape[2]
        if end > room:
            self._kv = F.pad(self._kv, (0, 0, 0, max(room, end - room)))
        self._kv[0, :, first:end] = k_NKD.transpose(0, 1)
        self._kv[1, :, first:end] = v_NKD.transpose(0, 1)


class DraftHead(Protocol):
    """`draft.head.head.Head` describes each; `draft.head.mtp` is another."""

    config: HeadConfig
    common: DraftVocab
    width: int

    def read(
        self,
        features: Tensor,
        after: Sequence[int],
        contexts: Sequence[Context],
        sizes: Sequence[int],
    ) -> Tensor: ...

    def store(
        self,
        features: Tensor,
        after: Sequence[int],
        contexts: Sequence[Context],
        sizes: Sequence[int],
    ) -> None: ...

    def step(
        self,
        hidden: Tensor,
        after: Sequence[int],
        contexts: Sequence[Context],
        parents: Sequence[Sequence[int]],
    ) -> Tensor: ...

    def logits(
        self, hidden: Tensor, words: Sequence[RequestVocab], sizes: Sequence[int]
    ) -> list[Tensor]: ...
