"""Which weights in torch a family has."""

from __future__ import annotations

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.families.pangu_v2 import PanguV2Weights
from fastslow.engine.model.weights import Weights


def weights_class(config: ModelConfig) -> type[Weights]:
    """`Weights`, or the one of a family whose tensors lie otherwise."""
    return Weights if config.pangu_v2 is None else PanguV2Weights
