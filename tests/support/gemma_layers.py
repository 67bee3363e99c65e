"""Models of Gemma 4's parts, of random weights in memory: on plain torch, and on the CPU kernels in any format."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastslow.engine.backends.cpu import store
from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.cpu.formats import Formats, Sources
from fastslow.engine.backends.cpu.kv import Int8Tiles, TiledStorage
from fastslow.engine.backends.cpu.packed import Arena
from fastslow.engine.backends.torch.decoder import Decoder
from fastslow.engine.backends.torch.weights import Weights
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.parallel import ParallelFfn
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.ffn.token_input import TABLE, PerLayerEmbedding, TokenInput
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.mixers.rope import Rope, RopeScaling
from fastslow.engine.model.norms import LayerNorms, RmsNorm
from fastslow.engine.model.ops import Ops, no_int8
from fastslow.engine.model.parts import WeightReader
from fastslow.engine.model.shape import Layer
from fastslow.engine.model.tensors import tensor_specs

NORM, NORMS = RmsNorm(1e-6), LayerNorms(RmsNorm(1e-6), after=True)
OFFSET = RmsNorm(1e-6, 1.0)  # Gemma 3's
HIDDEN, VOCAB, POSITIONS, WIDTH = 64, 96, 1024, 40
NORMED: dict[str, Any] = {"query_norm": NORM, "key_norm": NORM, "value_norm": NORM, "score_scale": 1.0}
TURN = Rope(64, 1e6, POSITIONS, RopeScaling("proportional", 1.0, pairs=8))
LOCAL = GroupedAttention(4, 2, 32, Rope(32, 1e4, POSITIONS), window=24, **NORMED)
GLOBAL = GroupedAttention(4, 1, 64, TURN, **NORMED)
INPUT = TokenInput(WIDTH, "gelu_tanh", NORM)
ROUTER = Router("softmax", 2, input_norm=NORM, per_expert_scale=True)
BOTH = ParallelFfn(DenseMlp(96, "gelu_tanh"), RoutedExperts(ROUTER, 8, DenseMlp(32, "gelu_tanh")), NORM)


def _config(layers: list[Layer], **fields: Any) -> ModelConfig:
    return ModelConfig("Tiny", VOCAB, HIDDEN, tuple(layers), POSITIONS, **{"norm": NORM, **fields})


def _edge() -> ModelConfig:
    """E4B: per-layer embeddings, shared keys, MLPs of two widths."""
    mixers = [LOCAL, GLOBAL, LOCAL, GLOBAL, replace(LOCAL, shares=2), replace(GLOBAL, shares=3)]
    layers = [
        Layer(mixer, DenseMlp(96 if n < 4 else 160, "gelu_tanh"), NORMS, token_input=INPUT, scaled=True)
        for n, mixer in enumerate(mixers)
    ]
    table = PerLayerEmbedding(VOCAB, len(layers), WIDTH, NORM)
    return _config(layers, per_layer_embedding=table, embedding_scale=8.0, logit_cap=30.0, tie_word_embeddings=True)


def _mixture() -> ModelConfig:
    """26B-A4B: values made of keys, an MLP beside experts."""
    mixers = [LOCAL, LOCAL, replace(GLOBAL, keys_as_values=True)]
    return _config([Layer(mixer, BOTH, NORMS, scaled=True) for mixer in mixers], embedding_scale=8.0, logit_cap=30.0)


def _third() -> ModelConfig:
    """Gemma 3: norms whose weights lack 1, two rotations, heads as wide in all layers."""
    norms: dict[str, Any] = {"query_norm": OFFSET, "key_norm": OFFSET, "score_scale": 24**-0.5}
    far = Rope(32, 1e6, POSITIONS, RopeScaling("linear", 8.0))
    mixers = [
        GroupedAttention(4, 2, 32, Rope(32, 1e4, POSITIONS), window=24, **norms), GroupedAttention(4, 2, 32, far, **norms)
    ]  # fmt: skip
    layers = [Layer(mixer, DenseMlp(96, "gelu_tanh"), LayerNorms(OFFSET, after=True)) for mixer in mixers]
    return _config(layers, norm=OFFSET, tie_word_embeddings=True, embedding_scale=8.0)


CONFIGS = {"edge": _edge(), "mixture": _mixture(), "third": _third()}


def weights(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors, of sizes with which no layer drowns the others."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for spec in tensor_specs(config):
        noise = torch.randn(spec.shape, generator=random)
        if len(spec.shape) == 1:
            ones = 0.0 if config.norm == OFFSET else 1.0
            found[spec.name] = ones + 0.2 * noise
        else:
            found[spec.name] = noise if "embed" in spec.name else noise * 1.5 * spec.shape[-1] ** -0.5
    return found


def on_torch(config: ModelConfig, table: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Decoder:
    reader = WeightReader(Ops(), dtype, torch.device("cpu"), table.__getitem__)
    return Decoder(Weights(config, reader))


def on_kernels(
    config: ModelConfig, table: Mapping[str, Tensor], formats: Formats | None = None, int8_keys: bool = False
) -> CpuDecoder:
    formats = formats or Formats.of(torch.float32, "none")
    arena, sources = Arena.of(config, formats), Sources(table.__getitem__, lambda name: None, no_int8)
    memory = store.create(None, arena, sources)
    storage = Int8Tiles if int8_keys else TiledStorage
    return CpuDecoder(config, formats, arena, memory, storage=storage, table=table.get(TABLE))
