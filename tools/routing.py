"""How evenly routers load experts and ranks: their own choice against the best of all without groups.

MoGE: Pangu Pro MoE, arXiv 2505.21411, section 2: with whole groups on a rank, every rank runs the same
number of experts for each token. Router scores of texts are read off the torch path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastslow.engine.backends.device import ops_for
from fastslow.engine.checkpoint.checkpoint import floats
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.decoder import Decoder, Weights
from fastslow.engine.model.moge import Moge
from fastslow.engine.types import Ints
from fastslow.tools.forward import forward_texts

CHUNK = 512  # prompt rows of a step


class RouterWeights(NamedTuple):
    """A router's shape: one of each of `groups` groups of its `experts`; with 1 group `chosen` of all."""

    experts: int
    groups: int
    chosen: int

    @classmethod
    def of(cls, config: ModelConfig) -> RouterWeights:
        """ValueError for a model without routed experts."""
        if not config.experts:
            raise ValueError(f"{config.architecture} is dense: it has no router to look at")
        if not any(map(config.routed, range(config.layers))):
            raise ValueError("all layers of this model are dense: they have no router to look at")
        return cls(config.experts, config.groups or 1, config.chosen)


class Scores(NamedTuple):
    """What routers choose by: float32 [layers with routed experts, T, E] of a text of T tokens, of which
    `prompt` are the prompt's."""

    logits: Tensor
    prompt: int


def load_decoder(folder: Path, progress: bool = True) -> Decoder:
    """The model of a checkpoint folder in float32 on the torch path, which lets others see its routers."""
    config = ModelConfig.from_folder(folder)
    with floats(folder, config, progress) as read:
        cpu = torch.device("cpu")
        return Decoder(Weights(config, ops_for("cpu"), torch.float32, cpu, read))


def router_scores(model: Decoder, texts: Iterable[tuple[Sequence[int], int]]) -> Iterator[Scores]:
    """Scores of texts, each given as its tokens and how many of them are the prompt's."""
    routed = [layer.mlp for layer in model.weights.layers if isinstance(layer.mlp, Moge)]
    seen: list[Tensor] = []

    def watching(mlp: Moge) -> Callable[[Tensor, Tensor], None]:
        return lambda _, logits_PE: seen.append(mlp.ranks_by(logits_PE))

    for tokens, prompt in texts:
        seen.clear()
        for mlp in routed:
            mlp.watch = watching(mlp)
        try:
            forward_texts(model, [tokens])
        finally:
            for mlp in routed:
                mlp.watch = None
        yield Scores(torch.stack([logits_PE[: len(tokens)].float() for logits_PE in seen]), prompt)


def grouped(logits_LTE: Tensor, gate: RouterWeights) -> Ints:
    """int64 [L, T, k]: one expert of each group, or the best of the only one."""
    if gate.groups == 1:
        return ungrouped(logits_LTE, gate)
    size = gate.experts // gate.groups
    best = logits_LTE.unflatten(-1, (gate.groups, size)).argmax(-1)
    experts: Ints = (best + torch.arange(0, gate.experts, size)).numpy()
    return experts


def ungrouped(logits_LTE: Tensor, gate: RouterWeights) -> Ints:
    """int64 [L, T, k]: the best of all, as many."""
    experts: Ints = logits_LTE.topk(gate.chosen, -1).indices.numpy()
    return experts


ROUTERS = {"MoGE": grouped, "ungrouped": ungrouped}


@dataclass(slots=True)
class ExpertLoad:
    """Tokens per expert, int64 [L, E] over all steps, of one way to choose and one kind of rows.

    deviations: per step and layer, the standard deviation across ranks over their mean. peaks: the
    fullest rank, which a step waits for, over the mean.
    """

    experts: Ints
    rows: int = 0
    deviations: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)

    def add(self, chosen_LRk: Ints, ranks: int) -> None:
        """One step: the experts of its R rows."""
        self.rows += chosen_LRk.shape[1]
        for layer, chosen_Rk in zip(self.experts, chosen_LRk):
            fresh = np.bincount(chosen_Rk.ravel(), minlength=self.experts.shape[1])
            layer += fresh
            by_rank = per_rank(fresh, ranks)
            self.deviations.append(float(by_rank.std() / by_rank.mean()))
            self.peaks.append(float(by_rank.max() / by_rank.mean()))

    def deviation(self, ranks: int) -> NDArray[np.float64]:
        """[L]: the standard deviation across ranks over their mean, over all steps."""
        by_rank = per_rank(self.experts, ranks)
        found: NDArray[np.float64] = by_rank.std(-1) / np.maximum(by_rank.mean(-1), 1e-9)
        return found


Loads = dict[tuple[str, str], ExpertLoad]  # by kind of rows (prefill, decode) and way to choose


def measure(texts: Iterable[Scores], gate: RouterWeights, ranks: int, batch: int) -> Loads:
    """Loads of texts whose prompts are read in chunks, one text at a time, and whose answers are decoded
    `batch` at a time, a row of each that is not over yet. A kind without rows is left out.

    Raises:
        ValueError: ranks do not divide the experts.
    """
    if ranks < 1 or gate.experts % ranks:
        raise ValueError(f"ranks={ranks} must divide the {gate.experts} experts")
    loads: Loads = {}
    waiting: list[Tensor] = []

    def add(kind: str, logits_LRE: Tensor) -> None:
        for name, choose in ROUTERS.items():
            empty = np.zeros((len(logits_LRE), gate.experts), dtype=np.int64)
            loads.setdefault((kind, name), ExpertLoad(empty)).add(choose(logits_LRE, gate), ranks)

    def decode() -> None:
        for place in range(max((answer.shape[1] for answer in waiting), default=0)):
            rows = [answer[:, place] for answer in waiting if place < answer.shape[1]]
            add("decode", torch.stack(rows, 1))
        waiting.clear()

    for text in texts:
        for chunk in torch.split(text.logits[:, : text.prompt], CHUNK, 1):
            add("prefill", chunk)
        waiting.append(text.logits[:, text.prompt :])
        if len(waiting) == batch:
            decode()
    decode()
    return loads


def per_rank(experts: Ints, ranks: int) -> Ints:
    """Counts [..., E] summed over each rank's own experts, [..., ranks]."""
    sums: Ints = experts.reshape(*experts.shape[:-1], ranks, -1).sum(-1)
    return sums
