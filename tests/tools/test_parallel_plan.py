"""The share that each rank holds, from a config alone; the 72B's shapes without its weights."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import DENSE, FAMILIES, MOGE
from cli_tools import printed, record, refusal
from pangu_v2_tools import MOE
from parallel_tools import weight_bytes
from refusals import refused

from fastslow.engine.backends.alike import AlikeLayers
from fastslow.engine.backends.device import ops_for
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ops import Ops
from fastslow.engine.model.tensor_spec import ShardAxis
from fastslow.engine.model.tensors import parameters, tensor_specs
from fastslow.engine.parallel.decoder import ShardReader, shard_weights
from fastslow.engine.parallel.sharding import Parallel, RankShard, usual
from fastslow.tools.plan.published import KNOWN
from fastslow.tools.plan.shards import ShardPlan

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


def part_on_meta(place: RankShard) -> tuple[int, int]:
    """Bytes of weights and bytes read, of a rank whose tensors are never allocated."""

    sizes = []

    def read(name: str, part: Sequence[slice]) -> torch.Tensor:
        found = torch.empty([s.stop - s.start for s in part], dtype=torch.bfloat16, device="meta")
        sizes.append(found.nbytes)
        return found

    meta = torch.device("meta")
    made = shard_weights(place, Ops(), torch.bfloat16, meta, ShardReader(place, read))
    return weight_bytes(made), sum(sizes)


@pytest.mark.parametrize("layout", ["ep=8", "ep=4,dp=2"])
def test_the_72b_is_planned_and_cut_without_its_weights(layout: str) -> None:
    config = config_of(PANGU_72B)
    plan = ShardPlan.of(config, Parallel.parse(layout), torch.bfloat16)
    assert parameters(config) == pytest.approx(71.99e9, rel=1e-4)
    for share in plan.shares[::5]:  # the first adds the biases
        weights, read = part_on_meta(share.place)
        assert weights == share.weights and read == 2 * share.elements
    assert max(share.weights for share in plan.shares) < 1.06 * 2 * parameters(config) / 8
    assert plan.shares[0].kv_per_token == {"ep=8": 24576, "ep=4,dp=2": 49152}[layout]
    per_row = sum(plan.layer_traffic(8).values()) / 8
    assert per_row == 2 * 5120 * 2 * {"ep=8": 8 + 8 - 2, "ep=4,dp=2": 4 + 8 - 2}[layout]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_experts_without_groups_are_shared_by_number(family: str, layout: str) -> None:
    """And what a rank of them holds and reads is planned to the byte."""
    config, parallel = config_of(FAMILIES[family]), Parallel.parse(layout)
    for share in ShardPlan.of(config, parallel, torch.bfloat16).shares:
        assert len(share.place.experts) == 8 // parallel.ep and not share.place.groups
        assert part_on_meta(share.place) == (share.weights, 2 * share.elements)


@pytest.mark.parametrize("kind", ["cpu", "npu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tied_head_counts_as_it_lies(kind: str, dtype: torch.dtype) -> None:
    """On a CPU, whose products want it packed, beside the embedding once more."""
    config = config_of({**MIXED, "tie_word_embeddings": True})

    def read(name: str, part: Sequence[slice]) -> torch.Tensor:
        return torch.zeros([s.stop - s.start for s in part], dtype=dtype)

    for share in ShardPlan.of(config, Parallel(ep=2, dp=2), dtype, kind).shares:
        cpu, reader = torch.device("cpu"), ShardReader(share.place, read)
        assert weight_bytes(shard_weights(share.place, ops_for(kind), dtype, cpu, reader)) == share.weights


def test_inspect_shows_the_shares(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PANGU_72B))
    told = record("inspect", tmp_path, "--parallel", "ep=4,dp=2")["parallel"]
    assert (told["ep"], told["tp"], told["dp"], told["sent_per_row_and_layer"]) == (4, 1, 2, 204800)
    plan = ShardPlan.of(config_of(PANGU_72B), Parallel(ep=4, dp=2), torch.bfloat16)
    assert [rank["weights"] for rank in told["ranks"]] == [share.weights for share in plan.shares]
    assert told["ranks"][5]["groups"] == [2, 3] and told["ranks"][5]["dp_rank"] == 1
    shown = " ".join(printed("inspect", tmp_path, "--parallel", "ep=4,dp=2").split())
    assert "a row of a layer sends 200.0 KiB between ranks" in shown and "17.5 GiB" in shown
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES["qwen3_moe"]))
    ranks = record("inspect", tmp_path, "--parallel", "ep=4")["parallel"]["ranks"]
    assert [rank["experts"] for rank in ranks] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    (tmp_path / "config.json").write_text(json.dumps(PANGU_72B))
    assert "ep=3 does not divide the 8 groups" in refusal("inspect", tmp_path, "--parallel", "ep=3")


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
