"""LFM2: gated short convolutions beside attention, and experts behind a sigmoid router."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import peer_models as peers
import pytest
from checkpoints import ROTATED, tensors
from family_tools import KERNELS, LONG, check_however_cut, load
from layer_fuzz import FEW_AND_MANY, LayerFuzz

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.mixers.short_conv import ShortConv

NAMES = [name for name in peers.SHAPES if name.startswith("lfm2")]
SHAPES = [pytest.param(name, marks=() if name in peers.FIRST else pytest.mark.slow) for name in NAMES]
LFM2: dict[str, Any] = {name: value for name, value in ROTATED.items() if name != "rms_norm_eps"}
LFM2 |= {"architectures": ["Lfm2ForCausalLM"], "model_type": "lfm2", "vocab_size": 32, "conv_L_cache": 3}
LFM2 |= {"block_multiple_of": 32, "layer_types": peers.conv_or_full("cfcc"), "norm_eps": 1e-5}
MOE = LFM2 | {"architectures": ["Lfm2MoeForCausalLM"], "num_dense_layers": 1, "num_experts": 8}
MOE |= {"num_experts_per_tok": 3, "moe_intermediate_size": 32, "layer_types": peers.conv_or_full("fccf")}


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", SHAPES)
def test_logprobs_are_those_of_transformers_however_a_text_is_cut(name: str, kernels: bool, tmp_path: Path) -> None:
    theirs = peers.build(name, max_position_embeddings=1024)
    model = load(peers.write(tmp_path, theirs), kernels)
    check_however_cut(model, peers.logprobs(theirs, LONG), 40 if name in peers.FIRST else 600)


FUZZED = [  # plain torch takes long
    pytest.param(case, marks=() if case[1] else pytest.mark.slow, id=str(case))
    for case in product(("dense", "moe"), KERNELS)
]


@pytest.fixture(scope="module", params=FUZZED)
def fuzz(request: Any, tmp_path_factory: pytest.TempPathFactory) -> LayerFuzz:
    kind, kernels = request.param
    config = MOE if kind == "moe" else LFM2
    return LayerFuzz.of(tmp_path_factory.mktemp("lfm2"), config, tensors(config), kernels)


@FEW_AND_MANY
def test_answers_are_those_of_plain_decoding(fuzz: LayerFuzz, count: int) -> None:
    fuzz.check(count)


PUBLISHED: dict[str, Any] = {  # as files of LFM2-1.2B say it
    "architectures": ["Lfm2ForCausalLM"], "block_auto_adjust_ff_dim": True, "block_dim": 2048, "block_ff_dim": 12288,
    "block_ffn_dim_multiplier": 1.0, "block_mlp_init_scale": 1.0, "block_multiple_of": 256, "block_norm_eps": 1e-05,
    "block_out_init_scale": 1.0, "block_use_swiglu": True, "block_use_xavier_init": True, "conv_L_cache": 3,
    "conv_bias": False, "conv_dim": 2048, "conv_dim_out": 2048, "conv_use_xavier_init": True, "eos_token_id": 7,
    "full_attn_idxs": [2, 5, 8, 10, 12, 14], "hidden_size": 2048, "max_position_embeddings": 128000,
    "model_type": "lfm2", "norm_eps": 1e-05, "num_attention_heads": 32, "num_heads": 32, "num_hidden_layers": 16,
    "num_key_value_heads": 8, "rope_theta": 1000000.0, "use_pos_enc": True, "vocab_size": 65536,
}  # fmt: skip


def test_a_published_config() -> None:
    config = ModelConfig.from_json(PUBLISHED)
    attending = [n for n, layer in enumerate(config.layers) if isinstance(layer.mixer, GroupedAttention)]
    assert attending == PUBLISHED["full_attn_idxs"] and config.tie_word_embeddings
    assert config.layers[0].mixer == ShortConv(2048, 3)
    assert {layer.ffn for layer in config.layers} == {DenseMlp(8192)}
    assert not ModelConfig.from_json(PUBLISHED | {"tie_embedding": False}).tie_word_embeddings


@pytest.mark.parametrize(
    ("fields", "width"),
    [({"block_multiple_of": 1}, 8192), ({"block_ffn_dim_multiplier": 1.1}, 9216), ({"block_ff_dim": 100}, 256),
     ({"block_ff_dim": 100, "block_ffn_dim_multiplier": None}, 66), ({"block_auto_adjust_ff_dim": False}, 12288)],
)  # fmt: skip
def test_the_width_of_an_mlp(fields: dict[str, Any], width: int) -> None:
    assert ModelConfig.from_json(PUBLISHED | fields).layers[0].ffn == DenseMlp(width)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"conv_dim": 1024}, "conv_dim 1024 must be hidden_size 2048"),
        ({"block_use_swiglu": False}, "block_use_swiglu false is not supported"),
        ({"layer_types": ["conv"]}, r"layer_types \['conv'\] must be a list of 16 types"),
        ({"layer_types": ["mamba"] * 16}, "layer_types has 'mamba', which is not one of full_attention, conv"),
        ({"conv_L_cache": 1}, "conv_L_cache 1 must be at least 2"),
        ({"sliding_window": 9}, "sliding_window 9 changes the model in a way that Lfm2ForCausalLM does not know here"),
    ],
)
def test_configs_that_do_not_fit(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        ModelConfig.from_json(PUBLISHED | fields)
