"""Mixtures of experts: GLM-4.5, ERNIE 4.5; and routers on plain torch and on the kernels."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import peer_models as peers
import pytest
import texts
from checkpoints import DENSE, tensors, write
from family_tools import KERNELS, LONG, check_however_cut, load
from kernel_tools import compiled
from pairs import pairwise

from fastslow.engine.families.reading import attending, decoder
from fastslow.engine.model.family import ConfigJson, Family, register
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.shape import DecoderShape, Layer


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", peers.MIXTURES)
def test_logprobs_are_those_of_transformers_however_a_text_is_cut(name: str, kernels: bool, tmp_path: Path) -> None:
    theirs = peers.build(name, max_position_embeddings=1024)
    model = load(peers.write(tmp_path, theirs), kernels)
    check_however_cut(model, peers.logprobs(theirs, LONG), 20)


def _any_router(raw: ConfigJson) -> DecoderShape:
    router = Router(**raw["router"])
    return decoder(raw, Layer(attending(raw), RoutedExperts(router, 16, DenseMlp(32), DenseMlp(32))))


register(Family(("AnyRouterForCausalLM",), _any_router))
KINDS, GROUPS = ("softmax", "chosen", "sigmoid"), ((0, 0, 2), (4, 2, 2), (4, 3, 1), (8, 3, 3))


@compiled
@pytest.mark.parametrize(
    ("kind", "normed", "biased", "groups", "top_k"), pairwise(KINDS, (True, False), (True, False), GROUPS, (3, 4))
)
def test_equal_experts_and_groups_are_chosen_alike(
    kind: str, normed: bool, biased: bool, groups: tuple[int, int, int], top_k: int, tmp_path: Path
) -> None:
    """On plain torch and on the kernels; an expert, and a group or two, have the scores of another."""
    router = Router(kind, top_k, normed, 1.5, False, biased, *groups)
    config: dict[str, Any] = {**DENSE, "architectures": ["AnyRouterForCausalLM"], "router": asdict(router)}
    table = tensors(config)
    for name, x in table.items():
        if name.endswith(("gate.weight", "correction_bias")):
            x[5], x[8:12], x[14:] = x[3], x[4:8], 0
    folder, tokens = write(tmp_path, config, table), texts.tokens_of(40)
    plain, kernels = load(folder, False), load(folder, True)
    for count in (None, 0, 1, 2):
        found = texts.logits(kernels, tokens, groups=count)
        assert (found - texts.logits(plain, tokens, groups=count)).abs().max() < 1e-3
