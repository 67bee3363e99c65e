"""How rotary frequencies are stretched, read from config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastslow.engine.host.files import shown
from fastslow.engine.model.fields import MOST_STRETCH, boolean, integer, number

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "factors")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched: `kind` is "linear", "dynamic", "llama3", "yarn" or "factors".

    llama3: wavelengths above original_max_positions / low_frequency_factor are stretched by `factor`,
    those below original_max_positions / high_frequency_factor are left alone, and those between are
    blended. yarn (Peng et al., arXiv 2309.00071): pairs that turn more than `fast_turns` times in
    original_max_positions are left alone, those that turn less than `slow_turns` times are stretched,
    and those between are blended, between whole pairs where `whole_pairs`; cosines and sines are
    multiplied by `attention_factor`. factors: each pair's frequency is divided by its own, as a GGUF file
    has them of a model scaled in the way of llama3.
    """

    kind: str
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_max_positions: int = 8192
    fast_turns: float = 32.0
    slow_turns: float = 1.0
    whole_pairs: bool = True
    attention_factor: float = 1.0
    factors: tuple[float, ...] = ()

    @classmethod
    def read(cls, rope: Mapping[str, Any], max_positions: int) -> RopeScaling | None:
        """From the object `rope_scaling` or `rope_parameters`; None where it stretches nothing."""
        older = rope.get("type")
        kind = rope.get("rope_type") or older or "default"
        if kind in ("default", "none"):
            return None
        if kind not in KINDS:
            raise ValueError(
                f"rope_scaling type {shown(kind)} is not one of the known {', '.join(KINDS)}"
            )
        if kind == "factors":
            each = rope.get("factors")
            some = each if isinstance(each, list) else []
            read = [number({"factors": x}, "factors", most=MOST_STRETCH) for x in some]
            return cls(kind, 1.0, factors=tuple(read))
        factor = number(rope, "factor", most=MOST_STRETCH)
        if factor < 1:
            raise ValueError(f"rope_scaling factor {factor} must be at least 1")
        if kind == "llama3":
            return cls._llama3(rope, factor)
        if kind == "yarn":
            return cls._yarn(rope, factor, max_positions)
        rope.get("original_max_position_embeddings")  # often there, and means nothing
        return cls(kind, factor)

    @classmethod
    def _llama3(cls, rope: Mapping[str, Any], factor: float) -> RopeScaling:
        low = number(rope, "low_freq_factor", most=MOST_STRETCH)
        high = number(rope, "high_freq_factor", most=MOST_STRETCH)
        if high <= low:
            raise ValueError(f"high_freq_factor {high} must be above low_freq_factor {low}")
        original = integer(rope, "original_max_position_embeddings")
        return cls("llama3", factor, low, high, original)

    @classmethod
    def _yarn(cls, rope: Mapping[str, Any], factor: float, max_positions: int) -> RopeScaling:
        """With the defaults of transformers; a field of 0 counts as missing there."""
        fast = number(rope, "beta_fast", 32.0, most=MOST_STRETCH)
        slow = number(rope, "beta_slow", 1.0, most=MOST_STRETCH)
        if fast <= slow:
            raise ValueError(f"beta_fast {fast} must be above beta_slow {slow}")
        mscale, of_all = (
            number(rope, name) if rope.get(name) else 0.0 for name in ("mscale", "mscale_all_dim")
        )
        usual = _stretch(factor, 1.0)
        if mscale and of_all:
            usual = _stretch(factor, mscale) / _stretch(factor, of_all)
        return cls(
            "yarn",
            factor,
            original_max_positions=integer(rope, "original_max_position_embeddings", max_positions),
            fast_turns=fast,
            slow_turns=slow,
            whole_pairs=boolean(rope, "truncate", True),
            attention_factor=number(rope, "attention_factor", usual, most=MOST_STRETCH),
        )


def _stretch(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1
