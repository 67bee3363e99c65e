"""The part that each rank holds, from a config alone; the 72B's shapes without its weights."""

from math import prod

import numpy as np
import pytest
import torch
from checkpoints import DENSE, FAMILIES, MOGE
from pangu_v2_tools import MOE
from parallel_tools import part_bytes
from refusals import refused

from fastslow.engine.backends.alike import AlikeLayers
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.tensor_spec import ShardAxis
from fastslow.engine.model.tensors import parameters, tensor_specs
from fastslow.engine.parallel.decoder import specs_of
from fastslow.engine.parallel.sharding import Parallel, RankShard, usual
from fastslow.tools.plan.published import KNOWN

PANGU_72B = KNOWN["openpangu-pro-moe-72b"]
MIXED = {**MOGE, "mlp_only_layers": [1], "vocab_size": 97}
BIASED = {**DENSE, "attention_bias": True, "mlp_bias": True}
V2 = {**MOE, "num_experts": 12, "v_channels": 8}
LAYOUTS = ("ep=2", "tp=2", "dp=2", "ep=4", "tp=4", "ep=2,tp=2", "dp=2,tp=2", "ep=2,dp=2", "dp=4")


def config_of(raw: dict[str, object]) -> ModelConfig:
    return ModelConfig.from_json(raw)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["moge", "dense", "qwen3_moe", "gpt_oss", "qwen3", "pangu_v2"])
def test_every_number_is_where_it_must_be(kind: str, layout: str) -> None:
    config = config_of({"moge": MIXED, "dense": BIASED, "pangu_v2": V2, **FAMILIES}[kind])
    parallel = Parallel.parse(layout)
    if config.routed is None and parallel.ep > 1:
        return
    places = RankShard.all(config, parallel)
    a, dp_ranks = places[0].attention, places[0].dp_ranks
    mixer = places[0].alike.attention
    copies = {
        ShardAxis.NOBODY: parallel.ranks, ShardAxis.ALL: 1, ShardAxis.HEADS: dp_ranks,
        ShardAxis.KV_HEADS: dp_ranks * max(1, a // mixer.kv_heads), ShardAxis.EXPERTS: 1, ShardAxis.FIRST_OF_ALL: 1,
        ShardAxis.FIRST_OF_HEADS: dp_ranks, ShardAxis.FIRST_OF_EXPERTS: 1,
    }  # fmt: skip
    for spec in tensor_specs(config):
        held, name = np.zeros(spec.shape, dtype=np.int64), spec.name
        for place in places:
            for part in place.parts(spec):
                held[part] += 1
        over, queries = spec.rule.over, mixer.heads * mixer.head_dim
        if over is ShardAxis.QKV:
            assert (held[:queries] == copies[ShardAxis.HEADS]).all(), name
            held, over = held[queries:], ShardAxis.KV_HEADS
        assert (held == copies[over]).all(), name


def test_h2p_on_eight_devices() -> None:
    """Attention DP2 x TP4, experts EP4 x TP2, shared TP8: arXiv 2505.21411."""
    places = RankShard.all(config_of(PANGU_72B), Parallel(ep=4, dp=2))
    assert {(p.attention, p.dp_ranks, p.heads, p.kv_heads, len(p.groups)) for p in places} == {(4, 2, 10, 2, 2)}
    local = AlikeLayers.of(places[5].local).mlps
    assert local == {"moe_intermediate_size": 672, "shared_expert_intermediate_size": 672}
    assert places[5].dp_rank == 1 and places[5].groups == range(2, 4)


@pytest.mark.parametrize("layout", ["ep=8", "ep=4,dp=2"])
def test_the_72b_is_cut_without_its_weights(layout: str) -> None:
    config = config_of(PANGU_72B)
    assert parameters(config) == pytest.approx(71.99e9, rel=1e-4)
    places = RankShard.all(config, Parallel.parse(layout))
    for place in places[::5]:  # the first adds the biases
        check_part(place, 1.06 * 2 * parameters(config) / 8)
    kept = places[0].local.state_layout.token_bytes(torch.bfloat16)
    assert kept == {"ep=8": 24576, "ep=4,dp=2": 49152}[layout]


def check_part(place: RankShard, most: float) -> None:
    """What a rank reads is its part of every tensor, and it holds no more than that and sums in float32."""
    held, read = part_bytes(place, torch.bfloat16)
    assert read == 2 * sum(prod(s.stop - s.start for s in x) for spec in specs_of(place) for x in place.parts(spec))
    assert read <= held < most


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_experts_without_groups_are_shared_by_number(family: str, layout: str) -> None:
    config, parallel = config_of(FAMILIES[family]), Parallel.parse(layout)
    for place in RankShard.all(config, parallel):
        assert len(place.experts) == 8 // parallel.ep and not place.groups
        check_part(place, 2 * parameters(config))


def test_ranks_are_used_as_well_as_the_model_allows_and_names_need_a_rule() -> None:
    moge, dense = config_of(MOGE), config_of(DENSE)
    assert usual(moge, 4) == Parallel(ep=4) and usual(moge, 8) == Parallel(ep=4, tp=2)
    assert usual(dense, 2) == Parallel(tp=2) and usual(config_of(PANGU_72B), 16) == Parallel(ep=8, tp=2)
    nine = config_of({**MOGE, "num_attention_heads": 9, "num_key_value_heads": 3})
    assert usual(nine, 2) == Parallel(ep=2)
    assert RankShard.all(nine, Parallel(ep=2))[0].dp_ranks == 2, "nine heads run twice"
    refused("5 ranks cannot share this model", usual, moge, 5)
    assert usual(config_of(MOE), 2) == Parallel(ep=2)
    refused("ep=3 does not divide the 10 experts", RankShard.all, config_of(MOE), Parallel(ep=3))
    refused("ep=3 does not divide the 8 groups", RankShard.all, config_of(PANGU_72B), Parallel(ep=3))
