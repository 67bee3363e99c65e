"""The tensors of a checkpoint: names, shapes, how many weights, and how ranks cut them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.families.catalog import FAMILIES, family_of
from fastslow.engine.model.fused import Fused
from fastslow.engine.model.layer_shapes import Shapes
from fastslow.engine.model.shard_rules import DECODER_CUTS, EXPERT, ShardRule


def tensor_shapes(config: ModelConfig) -> Shapes:
    """Every tensor that a checkpoint of this config holds, in file order, with its shape.

    With tied embeddings there is no `lm_head.weight`.
    """
    shapes: Shapes = {"model.embed_tokens.weight": (config.vocab_size, config.hidden_size)}
    for n in range(config.layers):
        shapes |= layer_shapes(config, n)
    shapes["model.norm.weight"] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    return shapes


def parameters(config: ModelConfig) -> int:
    """How many weights the checkpoint holds, embedding and head included."""
    return sum(prod(shape) for shape in tensor_shapes(config).values())


def active_parameters(config: ModelConfig, groups: int | None = None) -> int:
    """Weights in use for one token: `parameters` less the experts that do not run.

    groups: routed groups that run, or without groups experts; None = all, 0 = shared experts only.
    """
    running = config.chosen if groups is None else min(groups, config.chosen)
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    if config.expert_bias:
        expert += 2 * config.moe_intermediate_size + config.hidden_size
    routed = sum(config.routed(n) for n in range(config.layers))
    return parameters(config) - routed * (config.experts - running) * expert


def layer_shapes(config: ModelConfig, n: int) -> Shapes:
    """The tensors of layer `n`."""
    return family_of(config.architecture).layer_shapes(config, n)


def mtp_shapes(config: ModelConfig) -> Shapes:
    """What a checkpoint may hold besides: a layer that predicts the token after the next one."""
    return family_of(config.architecture).draft_shapes(config)


def fused_tensors(config: ModelConfig) -> Iterator[Fused]:
    """Layouts in which a file may hold several of the tensors in one."""
    return family_of(config.architecture).fused(config)


def canonical(name: str, config: ModelConfig) -> str:
    """The name that `tensor_shapes` has for a tensor that exports spell in several ways."""
    return family_of(config.architecture).canonical(name)


_CUTS = tuple(
    (re.compile(pattern), cut)
    for cuts in (*(family.cuts for family in FAMILIES), DECODER_CUTS)
    for pattern, cut in cuts
)
_EXPERT = re.compile(EXPERT)


def cut_of(name: str) -> ShardRule:
    """How the tensor of this name is cut.

    Raises:
        ValueError: no rule knows it.
    """
    for pattern, cut in _CUTS:
        if pattern.fullmatch(name):
            return cut
    raise ValueError(f"tensor {name} has no rule by which several ranks could share it")


def expert_of(name: str) -> int:
    """The expert's number in a tensor's name."""
    found = _EXPERT.match(name)
    if found is None:
        raise ValueError(f"tensor {name} is none of an expert")
    return int(found.group(1))
