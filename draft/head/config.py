"""The shape of a draft head, kept in the metadata of its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

KIND = "fastslow-head"


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """One decoder layer over the target's hidden states.

    Attributes:
        hidden: H, the target's hidden size.
        heads, kv_heads, head_dim, neurons: of the head's own layer.
        layers: target layers whose outputs are fused, 0 = the first layer's.
        vocabulary: D, tokens that can be drafted.
        rope_theta, eps: of rotary positions and norms.
        window: how many earlier positions attention reads, the latest ones.
        prompt: rows of a prompt, the last ones, that it was trained to see; 0 = none. Files from
            before there was such a field have none.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    neurons: int
    layers: tuple[int, ...]
    vocabulary: int
    rope_theta: float = 10000.0
    eps: float = 1e-5
    window: int = 512
    prompt: int = 0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape, of all that a head's file holds."""
        h, inner = self.hidden, self.heads * self.head_dim
        vectors = dict.fromkeys(NORMS, (h,))
        return {
            **vectors,
            "fuse": (h, len(self.layers) * h),
            "entry": (h, 2 * h),
            "qkv": (inner + 2 * self.kv_heads * self.head_dim, h),
            "out": (h, inner),
            "gate_up": (2 * self.neurons, h),
            "down": (h, self.neurons),
            "tokens": (self.vocabulary,),
        }

    def metadata(self) -> dict[str, str]:
        """For a safetensors file; `from_metadata` reads it."""
        return {"kind": KIND, "config": json.dumps(asdict(self))}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str] | None) -> HeadConfig:
        """ValueError in one sentence for a file that is no draft head."""
        found = dict(metadata or {})
        if found.get("kind") != KIND:
            raise ValueError(f"metadata field kind={found.get('kind')!r} must be {KIND!r}")
        try:
            values: dict[str, Any] = json.loads(found.get("config", ""))
            values.setdefault("prompt", 0)
            known = {field.name: values[field.name] for field in fields(cls)}
            config = cls(**known | {"layers": tuple(int(n) for n in known["layers"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"metadata field config lacks a field or is damaged: {error}"
            ) from None
        config._check()
        return config

    def _check(self) -> None:
        for name in ("hidden", "heads", "kv_heads", "head_dim", "neurons", "vocabulary", "window"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
        if not isinstance(self.prompt, int) or self.prompt < 0:
            raise ValueError(f"prompt={self.prompt!r} must be a whole number of at least 0")
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise ValueError(
                f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}, and "
                f"head_dim={self.head_dim} even"
            )
        if not self.layers or min(self.layers) < 0:
            raise ValueError(f"layers={self.layers} must name at least one target layer")


NORMS = ("embedding_norm", "hidden_norm", "attention_norm", "mlp_norm", "norm")
MATRICES = ("fuse", "entry", "qkv", "out", "gate_up", "down")
