"""Router scores of texts, read off the torch path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastslow.engine.backends.device import ops_for
from fastslow.engine.checkpoint.checkpoint import floats
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.decoder import Decoder, Weights
from fastslow.engine.model.moge import Moge
from fastslow.tools.forward import forward_texts


@dataclass(frozen=True, slots=True)
class RouterWeights:
    """A router to ask: `groups` of its `experts`, one of each group; 1 group and `chosen` of all."""

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


@dataclass(frozen=True, slots=True)
class Scores:
    """One text's router scores.

    Attributes:
        logits: float32 [layers with routed experts, T, E]; of a router that chooses by something
            else, that.
        prompt: how many of its T tokens are the prompt's.
    """

    logits: Tensor
    prompt: int


def load_decoder(folder: Path, progress: bool = True) -> Decoder:
    """The model of a checkpoint folder in float32 on the torch path, which lets others see its routers."""
    config = ModelConfig.from_folder(folder)
    cpu = torch.device("cpu")
    with floats(folder, config, progress) as read:
        return Decoder(Weights(config, ops_for("cpu"), torch.float32, cpu, read))


def router_scores(
    model: Decoder,
    texts: Iterable[tuple[Sequence[int], int]],
    random: RouterWeights | None,
    seed: int = 0,
) -> Iterator[Scores]:
    """Scores of texts, each given as its tokens and how many of them are the prompt's.

    random: not the model's own routers but random ones of this shape, over the same inputs, each
    entry normal with variance 1 / hidden size.
    """
    draws = torch.Generator().manual_seed(seed)
    gates: list[Tensor] = []
    for tokens, prompt in texts:
        with _watched(model) as seen:
            forward_texts(model, [tokens])
        found = []
        for n, (x_PH, logits_PE) in enumerate(seen):
            if random is not None:
                if n == len(gates):
                    shape = (random.experts, x_PH.shape[1])
                    gates.append(torch.randn(shape, generator=draws) * x_PH.shape[1] ** -0.5)
                logits_PE = x_PH.float() @ gates[n].T
            found.append(logits_PE[: len(tokens)].float())
        yield Scores(torch.stack(found), prompt)


@contextmanager
def _watched(model: Decoder) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """A list that gets each router's input and what it chooses by, layer by layer, while the block
    runs."""
    seen: list[tuple[Tensor, Tensor]] = []
    routed = [layer.mlp for layer in model.weights.layers if isinstance(layer.mlp, Moge)]

    def watching(mlp: Moge) -> Callable[[Tensor, Tensor], None]:
        return lambda x_PH, logits_PE: seen.append((x_PH, mlp.ranks_by(logits_PE)))

    for mlp in routed:
        mlp.watch = watching(mlp)
    try:
        yield seen
    finally:
        for mlp in routed:
            mlp.watch = None
