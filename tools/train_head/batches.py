"""Texts from the shards, in random batches of about one length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fastslow.tools.train_head.features import HiddenStates

PROMPT_COST = 4  # rows of a prompt that take the room of one that teaches
ALIKE = 128  # prompts whose lengths differ by less may share a batch


class Shown(NamedTuple):
    """Part of a prompt that the head sees: the fields of `TrainConfig`. Of a text outside `share` it sees the last
    row alone. Prompts are moved since long ones are rare, and a head should find things in them too."""

    share: float
    rows: int
    moved: float = 0.0


@dataclass(frozen=True, slots=True)
class Before:
    """P rows of each text's prompt, padded at the front. They teach nothing and are only seen."""

    features: Tensor  # [B, P, F]
    after: Tensor  # int64 [B, P], the token after each row
    places: Tensor  # int64 [B, P], positions; those of the rows that teach begin at 0
    visible: Tensor  # bool [B, P], rows that are there


@dataclass(frozen=True, slots=True)
class Batch:
    """B texts side by side, T rows each, padded at the end: a text's last prompt row, and its answer."""

    features: Tensor  # [B, T, F]
    after: Tensor  # int64 [B, T], the token after each row
    goal: Tensor  # [B, T, H], the target's last features at the row of `after`
    best: Tensor  # int64 [B, T], the likeliest token by them
    mass: Tensor  # f32 [B, T], logsumexp of their logits
    visible: Tensor  # bool [B, T], rows that are no padding
    end: Tensor  # int64 [B, 1], the row after the last that has a goal
    before: Before

    @property
    def tokens(self) -> int:
        """Rows that teach something."""
        return int(self.end.sum())

    def counts(self, step: int) -> Tensor:
        """bool [B, T]: rows where a chain of step + 1 tokens has its last one."""
        rows = torch.arange(self.after.shape[1])
        return (rows >= step) & (rows < self.end)


class BatchCut(NamedTuple):
    """A text, `shown` rows that the head sees before those it learns from, and how far these were moved."""

    text: HiddenStates
    shown: int
    gap: int = 0

    @property
    def first(self) -> int:
        """The first row that a draft can start from: the prompt's last, or an earlier one."""
        return self.text.start - 1

    @property
    def rows(self) -> int:
        """From there on."""
        return len(self.text.tokens) - 1 - self.first


def batch_of(cuts: Sequence[BatchCut], hidden: int) -> Batch:
    """Texts side by side, each with at least two tokens of answer. hidden: H of the target."""
    lengths = torch.tensor([cut.rows for cut in cuts])[:, None]
    starts = [(cut.text, cut.first) for cut in cuts]
    features = pad_sequence([t.features[s:-1] for t, s in starts], True)
    return Batch(
        features=features,
        after=pad_sequence([t.tokens[s + 1 :].long() for t, s in starts], True),
        goal=pad_sequence([t.features[s + 1 :, -hidden:] for t, s in starts], True),
        best=pad_sequence([t.best[s + 1 :].long() for t, s in starts], True),
        mass=pad_sequence([t.mass[s + 1 :] for t, s in starts], True),
        visible=torch.arange(features.shape[1]) < lengths,
        # Nothing is ever asked for after an end token.
        end=lengths - 1,
        before=_before(cuts),
    )


def _before(cuts: Sequence[BatchCut]) -> Before:
    def side_by_side(parts: list[Tensor]) -> Tensor:
        return pad_sequence(parts, True, padding_side="left")

    shown, gaps = (torch.tensor(x)[:, None] for x in zip(*((c.shown, c.gap) for c in cuts)))
    features = side_by_side([c.text.features[c.first - c.shown : c.first] for c in cuts])
    places = torch.arange(-features.shape[1], 0)
    return Before(
        features=features,
        after=side_by_side(
            [c.text.tokens[c.first - c.shown + 1 : c.first + 1].long() for c in cuts]
        ),
        places=places - gaps,
        visible=places >= -shown,
    )


def batches(
    texts: Sequence[HiddenStates], rows: int, shown: Shown, hidden: int, random: Random
) -> Iterator[Batch]:
    """All texts once, in random order, about `rows` padded rows a batch, a prompt's counted as a quarter."""
    cuts = [_cut(text, shown, random) for text in texts if len(text.tokens) - text.start >= 3]
    cuts.sort(key=lambda cut: (cut.shown // ALIKE, cut.rows + random.random()))
    groups: list[list[BatchCut]] = [[]]
    for cut in cuts:
        members = [*groups[-1], cut]
        room = max(c.rows + 1 for c in members) + max(c.shown for c in members) // PROMPT_COST
        if len(members) * room > rows and groups[-1]:
            groups.append([])
        groups[-1].append(cut)
    random.shuffle(groups)
    for group in groups:
        if group:
            yield batch_of(group, hidden)


def _cut(text: HiddenStates, shown: Shown, random: Random) -> BatchCut:
    if random.random() >= shown.share:
        return BatchCut(text, 0)
    count = min(shown.rows, text.start - 1)
    gap = random.randint(0, shown.rows - count) if random.random() < shown.moved else 0
    return BatchCut(text, count, gap)
