"""The target's hidden states at every token of its answers, computed once and kept in shards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastslow.engine.host.progress import Report, silent
from fastslow.engine.model.base import Model
from fastslow.tools.forward import forward_texts
from fastslow.tools.train_head.answers import TrainText

ROWS = 512  # of a forward
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
    """A folder of safetensors files, grown text by text and taken up where it ends. layers: of the target, that
    features come from. ValueError: the folder holds features of others."""

    def __init__(self, folder: Path, layers: tuple[int, ...]) -> None:
        self.folder = folder
        self.layers = layers
        self.counts: list[int] = []  # texts in each shard
        folder.mkdir(parents=True, exist_ok=True)
        while (path := self._path(len(self.counts))).is_file():
            with safe_open(path, framework="pt") as file:
                theirs = tuple(json.loads(file.metadata()["layers"]))
                self.counts.append(len(file.get_tensor("start")))
            if theirs != layers:
                raise ValueError(f"{path} has features of layers {theirs}, not {layers}")

    @property
    def texts(self) -> int:
        return sum(self.counts)

    def grow(
        self, model: Model, texts: Sequence[TrainText], shard: int = 256, report: Report = silent
    ) -> None:
        """Look at the texts that are not in the shards yet: of those of every earlier call all are."""
        while self.texts < len(texts):
            report(self.texts / len(texts), "features")
            some = texts[self.texts : self.texts + shard]
            self._add(look(model, some, self.layers))

    def read(self, number: int) -> list[HiddenStates]:
        """The texts of a shard, in order."""
        table = load_file(self._path(number))
        ends = [0, *table["ends"].tolist()]
        sizes = [last - first for first, last in pairwise(ends)]
        parts = (torch.split(table[name], sizes) for name in PARTS)
        return [HiddenStates(*seen) for seen in zip(*parts, table["start"].tolist())]

    def epoch(self, random: Random, at_once: int = 4) -> Iterator[list[HiddenStates]]:
        """All texts in random order: `at_once` shards at a time, whose texts then mix."""
        order = list(range(len(self.counts)))
        random.shuffle(order)
        for at in range(0, len(order), at_once):
            yield [seen for number in order[at : at + at_once] for seen in self.read(number)]

    def _path(self, number: int) -> Path:
        return self.folder / f"features-{number:05}.safetensors"

    def _add(self, seen: Sequence[HiddenStates]) -> None:
        table = {name: torch.cat([getattr(s, name) for s in seen]) for name in PARTS}
        table["ends"] = torch.tensor([len(s.tokens) for s in seen]).cumsum(0)
        table["start"] = torch.tensor([s.start for s in seen])
        path = self._path(len(self.counts))
        part = path.with_suffix(".part")
        save_file(table, part, {"layers": json.dumps(self.layers)})
        part.rename(path)  # what has its name is whole
        self.counts.append(len(seen))
