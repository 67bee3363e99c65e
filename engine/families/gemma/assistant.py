"""The assistants of Gemma 4 models: a few layers of Gemma 4, which read the keys of their target."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.families.gemma.gemma4 import GEMMA_4
from fastslow.engine.families.gemma.gguf import ASSISTANT
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import Family
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.shape import Assistance, DecoderShape, Layer

ALONE = {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": None}


def _assistant(raw: ConfigJson) -> DecoderShape:
    """Logits have no cap, as in transformers: it would not change their order."""
    raw.count("hidden_size_per_layer_input", most=0)
    hidden = raw.width("backbone_hidden_size", 1536)
    sizes = raw.integer("num_centroids", 2048), raw.integer("centroid_intermediate_top_k", 32)
    clusters = sizes if raw.boolean("use_ordered_embeddings") else (0, 0)
    shape = GEMMA_4.read(raw.changed(**ALONE)).each(_sharing)
    return replace(shape, logit_cap=0.0, assists=Assistance("Gemma4", hidden, *clusters))


def _sharing(n: int, layer: Layer) -> Layer:
    assert isinstance(layer.mixer, GroupedAttention)
    return replace(layer, mixer=replace(layer.mixer, shares=-1, key_norm=None, value_norm=None))


GEMMA_4_ASSISTANT = Family(
    ("Gemma4AssistantForCausalLM", "Gemma4UnifiedAssistantForCausalLM"), _assistant, ASSISTANT
)
