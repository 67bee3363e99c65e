"""Layers whose sizes do not fit: one sentence each, before any weight is read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from checkpoints import DENSE

from fastslow.engine.families.reading import decoder
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.router import GroupRouter, Router
from fastslow.engine.model.mixers.delta import GatedDelta
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.mixers.latent import LatentAttention
from fastslow.engine.model.mixers.rope import Rope
from fastslow.engine.model.mixers.short_conv import ShortConv
from fastslow.engine.model.norms import LayerNorm, LayerNorms, RmsNorm
from fastslow.engine.model.shape import Layer, MtpLayer

MLP = DenseMlp(8)
GROUPED = GroupedAttention(4, 2, 8, Rope(8, 10000.0, 64))
DELTA = GatedDelta(2, 4, 8, 8)
CONV = ShortConv(8)
LATENT = LatentAttention(2, 8, Rope(8, 10000.0, 64), 8, 16)
EXPERTS = RoutedExperts(Router("softmax", 2), 4, MLP)


def check(*layers: Layer, mtp: Layer | None = None) -> None:
    config = ModelConfig("Tested", 32, 16, layers, 64)
    replace(config, mtp=None if mtp is None else MtpLayer.apart(mtp, RmsNorm())).check()


@pytest.mark.parametrize(
    ("mixer", "fields", "said"),
    [
        (DELTA, {"key_heads": 0}, "linear_num_key_heads 0 must be at least 1"),
        (DELTA, {"value_heads": -4}, "linear_num_value_heads -4 must be at least 1"),
        (DELTA, {"key_dim": 0}, "linear_key_head_dim 0 must be at least 1"),
        (DELTA, {"value_heads": 3}, "linear_num_value_heads 3 must be a multiple of linear_num_key_heads 2"),
        (DELTA, {"kernel": 1}, "linear_conv_kernel_dim 1 must be at least 2"),
        (CONV, {"channels": 0}, "conv_dim 0 must be at least 1"),
        (CONV, {"kernel": 1}, "conv_L_cache 1 must be at least 2"),
        (GROUPED, {"kv_heads": 0}, "num_key_value_heads 0 must be at least 1"),
        (GROUPED, {"heads": 0}, "num_attention_heads 0 must be at least 1"),
        (GROUPED, {"head_dim": 16}, "a rotation of 8 dims is not one of head_dim 16"),
        (LATENT, {"latent": 0}, "kv_lora_rank 0 must be at least 1"),
        (LATENT, {"nope": -8}, "qk_nope_head_dim -8 must be at least 1"),
    ],
)
def test_mixers(mixer: Any, fields: dict[str, int], said: str) -> None:
    wrong = Layer(replace(mixer, **fields), MLP)
    check(Layer(mixer, MLP))
    with pytest.raises(ValueError, match=f"^{said}$"):
        check(wrong)
    with pytest.raises(ValueError, match=f"^{said}$"):
        check(Layer(GROUPED, MLP), mtp=wrong)


@pytest.mark.parametrize(
    ("ffn", "said"),
    [
        (DenseMlp(0), "intermediate_size 0 must be at least 1"),
        (replace(EXPERTS, shared=DenseMlp(-1)), "intermediate_size -1 must be at least 1"),
        (replace(EXPERTS, router=Router("softmax", 0)), "num_experts_per_tok 0 must be at least 1"),
        (replace(EXPERTS, router=Router("tanh", 2)), "a router of kind 'tanh' is not one of softmax, chosen, sigmoid"),
        (replace(EXPERTS, router=GroupRouter(0)), "num_experts 4 must be a multiple of num_experts_per_tok 0, .*"),
    ],
)
def test_ffns(ffn: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        check(Layer(GROUPED, ffn))


@pytest.mark.parametrize("mixer", [DELTA, replace(GROUPED, shares=0)])
def test_a_layer_that_drafts_has_rows_of_its_own(mixer: Any) -> None:
    check(Layer(GROUPED, MLP), Layer(mixer, MLP), mtp=Layer(GROUPED, MLP))
    with pytest.raises(ValueError, match="^the layer for multi-token prediction must keep rows of its own"):
        check(Layer(GROUPED, MLP), mtp=Layer(mixer, MLP))


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (replace(GROUPED, shares=2), "layer 1 shares the keys of layer 2, which is no earlier one with keys"),
        (replace(GROUPED, shares=0, value_dim=4), "layer 1 shares the keys of layer 0, whose heads are of other sizes"),
    ],
)
def test_owners_of_keys_are_earlier_layers_with_heads_of_the_same_size(layer: Any, said: str) -> None:
    check(Layer(GROUPED, MLP), Layer(replace(GROUPED, shares=0), MLP), Layer(GROUPED, MLP))
    with pytest.raises(ValueError, match=f"^{said}$"):
        check(Layer(GROUPED, MLP), Layer(layer, MLP), Layer(GROUPED, MLP))


def test_there_are_layers() -> None:
    with pytest.raises(ValueError, match="^a decoder has at least one layer$"):
        check()
    check(Layer(GROUPED, MLP, LayerNorms(before=False)))  # without any norm


def test_a_decoder_says_its_norm_once() -> None:
    norms = LayerNorms(LayerNorm(), after=True)
    layer, raw = Layer(GROUPED, MLP, norms), ConfigJson(DENSE, "Tested")
    assert decoder(raw, layer, norm=LayerNorm()).layers[0].norms == norms
    with pytest.raises(ValueError, match="^its layers have norms of kind LayerNorm.*, the decoder has RmsNorm"):
        decoder(raw, layer)
