"""Calibration: prompts with the model's own answers, until every expert has its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import Tensor

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.params import SamplingParams
from fastslow.llm import LLM
from fastslow.tools.prompts import Conversation, read_prompts
from fastslow.tools.quantize.plain_layer import PlainLayer, Tensors, plain

FILE = "calibration.jsonl"  # in a checkpoint's folder; the one beside this file has a few of many kinds
TOGETHER = 16  # answers made at once
ROUNDS = 8  # how often the same prompts are answered anew, each time with other chances
LONGEST = 1024  # tokens of a text
AT_ONCE = 4096  # tokens of the texts that are looked at in one go


def prompts_of(path: Path | None, folder: Path) -> list[Conversation]:
    """Prompts of a file of JSON lines; without a file those of the checkpoint, as a model of few subjects should bring
    them; else a few of many kinds."""
    if path is None and (folder / FILE).is_file():
        path = folder / FILE
        logger.info("calibration with the prompts of {}", path)
    return read_prompts(path or Path(__file__).with_name(FILE))


def answered(
    llm: LLM, prompts: Sequence[Any], *, tokens: int = 160, seed: int = 0
) -> Iterator[list[int]]:
    """Token ids of prompts with answers drawn at temperature 1, for some rounds: the model's own words are what
    it will read when it runs. prompts: token ids where the model has no tokenizer. tokens: most of an
    answer; 0 = the prompts alone, once."""
    for turn in range(ROUNDS if tokens else 1):
        for first in range(0, len(prompts), TOGETHER):
            some = list(prompts[first : first + TOGETHER])
            seeds = count(seed + 7919 * (turn * len(prompts) + first))
            how = SamplingParams(max_tokens=max(tokens, 1), temperature=1.0)
            sampling = [how.model_copy(update={"seed": next(seeds)}) for _ in some]
            outputs = llm.generate(some, sampling, speculation="off", progress=False)
            for output in outputs:
                answer = list(output.token_ids) if tokens else []
                yield (list(output.prompt_token_ids) + answer)[:LONGEST]


@dataclass(slots=True)
class Calibration:
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
) -> Calibration:
    """Take texts until they are `enough` tokens and every expert of every layer saw `least` of them, or they
    end, or `most` tokens were looked at. Past `enough`, a text stays only if it brings tokens to an expert
    that is short of them.

    embed: token ids -> rows [N, H] in float32. layer: number -> the layer's tensors in float32.
    """
    count, experts = len(config.layers), config.routed.experts if config.routed else 0
    found = Calibration(counts=torch.zeros(count, experts, dtype=torch.int64))
    looked = 0
    while looked < most and (some := _some(texts, min(AT_ONCE, max(enough - looked, 512)))):
        looked += sum(len(text) for text in some)
        seen = _counts(config, embed, layer, some)
        for text, counts in zip(some, seen):
            short = found.counts < least
            if found.tokens < enough or bool((short & (counts > 0)).any()):
                found.texts.append(text)
                found.counts += counts
        if found.tokens >= enough and not found.starved(least):
            break
    return found


def _some(texts: Iterator[list[int]], tokens: int) -> list[list[int]]:
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
    experts = config.routed.experts if config.routed else 0
    counts = torch.zeros(len(texts), len(config.layers), experts, dtype=torch.int64)
    owner = torch.repeat_interleave(torch.arange(len(texts)), torch.tensor(lengths))
    x_NH = embed([token for text in texts for token in text])
    if not experts:
        return counts
    for n in range(len(config.layers)):

        def chosen(scores_NE: Tensor, experts_NG: Tensor, n: int = n) -> None:
            at = owner[:, None].expand_as(experts_NG)
            one = torch.ones_like(experts_NG)
            counts[:, n].index_put_((at, experts_NG), one, accumulate=True)

        tensors = layer(n)
        x_NH = PlainLayer(config, n, tensors, lengths)(x_NH, plain(tensors), chosen)
    return counts
