"""A family made here: LayerNorms with biases after each sublayer and none before, and windows in some layers.

Two classes of transformers have a part of it each: StableLM LayerNorms, EXAONE 4 no norms before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peer_models as peers
import pytest
import texts
import torch
from checkpoints import DENSE, tensors
from layer_fuzz import FEW_AND_MANY, LayerFuzz, load

from fastslow.engine.families.reading import attending, decoder, feeding, norm_of
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import Family, register
from fastslow.engine.model.norms import LayerNorm, LayerNorms
from fastslow.engine.model.shape import DecoderShape, Layer

CONFIG: dict[str, Any] = DENSE | {"architectures": ["AfterNormsForCausalLM"], "num_hidden_layers": 4, "vocab_size": 32}
CONFIG |= {"windows": [9, 9, 0, 9], "layer_norm_eps": 1e-5}
TOKENS = texts.tokens_of(140, vocab=32)  # longer than a block of attention


def read(raw: ConfigJson) -> DecoderShape:
    norm, windows = LayerNorm(raw["layer_norm_eps"]), raw["windows"]
    shape = decoder(raw, Layer(attending(raw), feeding(raw)))

    def one(n: int, layer: Layer) -> Layer:
        mixer = replace(attending(raw), window=windows[n])
        return Layer(mixer, layer.ffn, LayerNorms(norm, before=False, after=True))

    return replace(shape.each(one), norm=norm)


def read_stablelm(raw: ConfigJson) -> DecoderShape:
    """Norms stand before."""
    norm = LayerNorm(raw["layer_norm_eps"])
    shape = decoder(raw, Layer(attending(raw), feeding(raw)))
    return replace(shape.each(lambda n, layer: replace(layer, norms=LayerNorms(norm))), norm=norm)


def read_exaone(raw: ConfigJson) -> DecoderShape:
    """RMSNorms, also of heads; layers that see all do not rotate."""
    norm, window = norm_of(raw), raw["sliding_window"]
    mixer = replace(attending(raw), query_norm=norm, key_norm=norm)
    shape = decoder(raw, Layer(mixer, feeding(raw), LayerNorms(before=False, after=True)))

    def one(n: int, layer: Layer) -> Layer:
        slides = raw["layer_types"][n] == "sliding_attention"
        own = replace(mixer, window=window) if slides else replace(mixer, rope=None)
        return replace(layer, mixer=own)

    return shape.each(one)


PEERS: dict[str, tuple[Callable[[ConfigJson], DecoderShape], dict[str, Any]]] = {
    "StableLm": (read_stablelm, {"partial_rotary_factor": 1.0, "layer_norm_eps": 1e-5}),
    "Exaone4": (read_exaone, {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"]}),
}
register(Family(("AfterNormsForCausalLM",), read))
register(*(Family((f"Tested{name}",), reader) for name, (reader, _) in PEERS.items()))


@pytest.mark.parametrize("name", PEERS)
def test_logprobs_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    fields = {"architectures": [f"Tested{name}"], "model_type": name.lower(), "vocab_size": 32}
    config = DENSE | fields | PEERS[name][1]
    found = texts.logits(load(tmp_path, config, tensors(config)), TOKENS).double().log_softmax(-1)
    theirs = getattr(peers.transformers(), f"{name}ForCausalLM").from_pretrained(tmp_path).eval()
    torch.testing.assert_close(found, peers.logprobs(theirs, TOKENS), rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> LayerFuzz:
    return LayerFuzz.of(tmp_path_factory.mktemp("norms"), CONFIG, tensors(CONFIG))


@FEW_AND_MANY
def test_answers_are_those_of_plain_decoding(fuzz: LayerFuzz, count: int) -> None:
    fuzz.check(count)
