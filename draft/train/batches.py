"""Texts from the shards, in random batches of about one length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fastslow.draft.train.features import Seen


@dataclass(frozen=True, slots=True)
class Batch:
    """B texts side by side, T rows each, padded at the end.

    Attributes:
        features: [B, T, F] of the rows.
        after: int64 [B, T], the token after each row.
        goal: [B, T, H], the target's last features at the row of `after`: its law is to be guessed.
        best: int64 [B, T], that law's likeliest token.
        mass: f32 [B, T], logsumexp of that law's logits.
        visible: bool [B, T], rows that the head may see.
        first: int64 [B, 1], the first row that a draft can start from.
        end: int64 [B, 1], the row after the last that has a goal.
    """

    features: Tensor
    after: Tensor
    goal: Tensor
    best: Tensor
    mass: Tensor
    visible: Tensor
    first: Tensor
    end: Tensor

    @property
    def tokens(self) -> int:
        """Rows that teach something."""
        return int((self.end - self.first).sum())

    def counts(self, step: int) -> Tensor:
        """bool [B, T]: rows where a chain of step + 1 tokens has its last one."""
        rows = torch.arange(self.after.shape[1])
        return (rows >= self.first + step) & (rows < self.end)


def batch_of(texts: Sequence[Seen], shown: Sequence[int], hidden: int) -> Batch:
    """Lay texts side by side.

    Args:
        texts: with at least two tokens of answer each.
        shown: per text, the first row that the head sees; rows before it are left out.
        hidden: H of the target.
    """
    lengths = torch.tensor([len(t.tokens) - 1 - s for t, s in zip(texts, shown)])[:, None]
    cut = list(zip(texts, shown))
    features = pad_sequence([t.features[s:-1] for t, s in cut], True)
    return Batch(
        features=features,
        after=pad_sequence([t.tokens[s + 1 :].long() for t, s in cut], True),
        goal=pad_sequence([t.features[s + 1 :, -hidden:] for t, s in cut], True),
        best=pad_sequence([t.best[s + 1 :].long() for t, s in cut], True),
        mass=pad_sequence([t.mass[s + 1 :] for t, s in cut], True),
        visible=torch.arange(features.shape[1]) < lengths,
        first=torch.tensor([t.start - 1 - s for t, s in cut])[:, None],
        # The law after an end token is never asked for.
        end=lengths - 1,
    )


def batches(
    texts: Sequence[Seen], rows: int, prompts: float, hidden: int, random: Random
) -> Iterator[Batch]:
    """All texts once, in random order, about `rows` padded rows a batch.

    Args:
        prompts: share of texts whose prompt the head sees; of the others it sees the last prompt
            row, as a drafter does whose target gives features of verified rows only.
    """
    picked = [
        (text, 0 if random.random() < prompts else text.start - 1)
        for text in texts
        if len(text.tokens) - text.start >= 3
    ]
    picked.sort(key=lambda p: len(p[0].tokens) - p[1] + random.random())
    groups: list[list[tuple[Seen, int]]] = [[]]
    for text, shown in picked:  # ascending, so the last one is the longest
        if (len(groups[-1]) + 1) * (len(text.tokens) - shown) > rows and groups[-1]:
            groups.append([])
        groups[-1].append((text, shown))
    random.shuffle(groups)
    for group in groups:
        if group:
            yield batch_of([t for t, _ in group], [s for _, s in group], hidden)
