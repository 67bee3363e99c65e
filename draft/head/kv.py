"""Keys and values of one text in a draft head.

Letters: N new rows, Q rows that ask, S rows that are read, H attention heads, K key heads, D their size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastslow.draft.head.config import HeadConfig

GROW = 64  # rows


class HeadKV:
    """Grows row by row; a draft's rows are dropped when the next rows are committed.

    Rows may be missing between others (a prompt that was never read): the head then knows less, and
    positions stay right.

    Attributes:
        position: of the next committed row, in the text.
    """

    def __init__(self, config: HeadConfig, position: int) -> None:
        self.position = position
        self._config = config
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

    def prepend(self, k_NKD: Tensor, v_NKD: Tensor) -> None:
        """Rows before the text that take no position in it; they come before any other."""
        self._write(0, k_NKD, v_NKD)
        self._committed = len(k_NKD)

    def positions(self, count: int) -> range:
        """Of the next `count` committed rows."""
        return range(self.position, self.position + count)

    def draft_positions(self, parents: Sequence[int]) -> list[int]:
        """Of draft rows with these parents, which are draft rows; -1 = the last committed row."""
        return [self.position + (0 if p < 0 else self._depths[p] + 1) for p in parents]

    def commit(self, k_NKD: Tensor, v_NKD: Tensor) -> None:
        """Append rows of the text."""
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
        """Remove the draft's rows."""
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
