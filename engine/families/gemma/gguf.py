"""GGUF files of Gemma 3 and 4: the names of their tensors and header keys."""

from __future__ import annotations

from fastslow.engine.model.family import GGUF_HEAD_NORMS, GGUF_LAYER, GgufNames

APPLIED = "weights_applied"  # norms have the one that config.json's leave out
GEMMA3 = GgufNames("gemma3", GGUF_LAYER | GGUF_HEAD_NORMS, given={APPLIED: True})
GEMMA4 = GgufNames("gemma4", GGUF_LAYER | GGUF_HEAD_NORMS)
