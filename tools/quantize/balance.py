"""Calibration that gives every expert its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastslow.engine.model.config import ModelConfig
from fastslow.tools.quantize.layer import PlainLayer, Tensors, plain

AT_ONCE = 4096  # tokens of the texts that are looked at together


@dataclass(slots=True)
class Balanced:
    """texts: token ids. counts: int64 [layers, experts], tokens that each expert saw of them; rows of
    layers without experts are 0."""

    texts: list[list[int]] = field(default_factory=list)
    counts: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))

    @property
    def tokens(self) -> int:
        return sum(len(text) for text in self.texts)

    def starved(self, least: int) -> list[tuple[int, int, int]]:
        """(layer, expert, tokens) of the experts that saw fewer than `least`."""
        routed = self.counts.sum(1) > 0
        short = (self.counts < least) & routed[:, None]
        return [(n, e, int(self.counts[n, e])) for n, e in short.nonzero().tolist()]


def balanced_texts(
    config: ModelConfig,
    embed: Callable[[list[int]], Tensor],
    layer: Callable[[int], Tensors],
    texts: Iterator[list[int]],
    *,
    enough: int,
    least: int,
    most: int,
    note: Callable[[int, int], None] = lambda tokens, starved: None,
) -> Balanced:
    """Take texts until they are `enough` tokens and every expert of every layer saw `least` of them.

    Past `enough`, a text stays only if it brings tokens to an expert that is short of them. It ends,
    too, when the texts do, or `most` tokens were looked at.

    Args:
        config: the model's.
        embed: token ids -> rows [N, H] in float32.
        layer: number -> the layer's tensors in float32, read anew for every few texts.
        texts: token ids.
        enough, least, most: tokens.
        note: told after every few texts how many tokens are kept, and how many experts starve.
    """
    found = Balanced(counts=torch.zeros(config.layers, config.experts, dtype=torch.int64))
    looked = 0
    while looked < most and (some := _some(texts, min(AT_ONCE, max(enough - looked, 512)))):
        looked += sum(len(text) for text in some)
        seen = _counts(config, embed, layer, some)
        for text, counts in zip(some, seen):
            short = found.counts < least
            if found.tokens < enough or bool((short & (counts > 0)).any()):
                found.texts.append(text)
                found.counts += counts
        starved = len(found.starved(least))
        note(found.tokens, starved)
        if found.tokens >= enough and not starved:
            break
    return found


def _some(texts: Iterator[list[int]], tokens: int) -> list[list[int]]:
    """Texts until they are so many tokens."""
    found: list[list[int]] = []
    while sum(map(len, found)) < tokens and (text := next(texts, None)) is not None:
        found.append(text)
    return found


def _counts(
    config: ModelConfig,
    embed: Callable[[list[int]], Tensor],
    layer: Callable[[int], Tensors],
    texts: list[list[int]],
) -> Tensor:
    """int64 [texts, layers, experts]."""
    lengths = [len(text) for text in texts]
    counts = torch.zeros(len(texts), config.layers, config.experts, dtype=torch.int64)
    owner = torch.repeat_interleave(torch.arange(len(texts)), torch.tensor(lengths))
    x_NH = embed([token for text in texts for token in text])
    if not config.groups:
        return counts
    for n in range(config.layers):

        def chosen(scores_NE: Tensor, experts_NG: Tensor, n: int = n) -> None:
            at = owner[:, None].expand_as(experts_NG)
            one = torch.ones_like(experts_NG)
            counts[:, n].index_put_((at, experts_NG), one, accumulate=True)

        tensors = layer(n)
        x_NH = PlainLayer(config, n, tensors, lengths)(x_NH, plain(tensors), chosen)
    return counts
