"""The target's hidden states at every token of its answers, computed once and kept in shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

import torch
from torch import Tensor

from fastslow.engine.host.progress import Report, silent
from fastslow.engine.model.base import Model
from fastslow.tools.forward import forward_texts
from fastslow.tools.kept import KeptWork, Tensors
from fastslow.tools.train_head.answers import TrainText

ROWS = 512  # of a forward
SHARD = 256  # texts
PARTS = ("tokens", "features", "best", "mass")  # of `HiddenStates`, a row a token


@dataclass(slots=True)
class HiddenStates:
    """A text with what the target saw in it. T tokens."""

    tokens: Tensor  # int32 [T]
    features: Tensor  # [T, F] bfloat16, the outputs of the layers asked for, side by side
    best: Tensor  # int32 [T], the target's likeliest next token
    mass: Tensor  # f32 [T], logsumexp of the target's logits
    start: int  # where the answer begins


def look(model: Model, texts: Sequence[TrainText], layers: tuple[int, ...]) -> list[HiddenStates]:
    """Run the texts through the target, several in a forward."""
    groups: list[list[TrainText]] = [[]]
    for text in texts:
        if groups[-1] and sum(len(t.tokens) for t in [*groups[-1], text]) > ROWS:
            groups.append([])
        groups[-1].append(text)
    return [seen for group in groups for seen in _look(model, group, layers)]


def _look(model: Model, texts: Sequence[TrainText], layers: tuple[int, ...]) -> list[HiddenStates]:
    out = forward_texts(model, [text.tokens for text in texts], layers)
    assert out.features is not None
    sizes = [len(text.tokens) for text in texts]
    best, mass = out.logits.argmax(-1).to(torch.int32), out.logits.logsumexp(-1).float()
    parts = (torch.split(x, sizes) for x in (out.features.bfloat16(), best, mass))
    tokens = (torch.tensor(text.tokens, dtype=torch.int32) for text in texts)
    return [HiddenStates(*seen) for seen in zip(tokens, *parts, (text.start for text in texts))]


class Shards:
    """What the target saw in some texts, a shard of them a part of the kept work. layers: of the target, that features
    come from."""

    def __init__(
        self,
        kept: KeptWork,
        name: str,
        model: Model,
        texts: Sequence[TrainText],
        layers: tuple[int, ...],
    ) -> None:
        self._kept = kept
        starts = range(0, len(texts), SHARD)
        self._parts = {
            f"{name}-{n:05}": partial(_table, model, texts[first : first + SHARD], layers)
            for n, first in enumerate(starts)
        }

    def make(self, report: Report = silent) -> list[HiddenStates]:
        """Look at the texts of all shards that are not kept yet; gives those of the last one."""
        seen: list[HiddenStates] = []
        for n, name in enumerate(self._parts):
            report(n / len(self._parts), "features")
            seen = self.read(name)
        return seen

    def read(self, name: str) -> list[HiddenStates]:
        """The texts of a shard, in order."""
        table = self._kept.part(name, self._parts[name])
        sizes = table["sizes"].tolist()
        parts = (torch.split(table[part], sizes) for part in PARTS)
        return [HiddenStates(*seen) for seen in zip(*parts, table["start"].tolist())]

    def epoch(self, random: Random, at_once: int = 4) -> Iterator[list[HiddenStates]]:
        """All texts in random order: `at_once` shards at a time, whose texts then mix."""
        order = list(self._parts)
        random.shuffle(order)
        for at in range(0, len(order), at_once):
            yield [seen for name in order[at : at + at_once] for seen in self.read(name)]


def _table(model: Model, texts: Sequence[TrainText], layers: tuple[int, ...]) -> Tensors:
    seen = look(model, texts, layers)
    table = {name: torch.cat([getattr(one, name) for one in seen]) for name in PARTS}
    table["sizes"] = torch.tensor([len(one.tokens) for one in seen])
    return table | {"start": torch.tensor([one.start for one in seen])}
