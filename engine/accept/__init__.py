"""Acceptance: which drafted tokens the target keeps, and the one token it adds."""

from __future__ import annotations

from fastslow.engine.accept.block import block
from fastslow.engine.accept.follow import follow
from fastslow.engine.accept.forest import Noise, accept
from fastslow.engine.accept.rule import Rule
from fastslow.engine.accept.stepwise import LossyStepwise
from fastslow.engine.accept.tokenwise import tokenwise
from fastslow.engine.accept.typical import LossyTypical

RULES: dict[str, Rule] = {
    "token": tokenwise,
    "block": block,
    "reproducible": follow,
    "lossy-typical": LossyTypical(),
}
"""What a user may ask for, by name. All but those that say so are exact. "lossy-stepwise" is made for
each model, since it knows which tokens end a step: `LossyStepwise`."""

__all__ = [
    "RULES",
    "LossyStepwise",
    "LossyTypical",
    "Noise",
    "Rule",
    "accept",
    "block",
    "follow",
    "tokenwise",
]
