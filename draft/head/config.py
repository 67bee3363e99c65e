"""The shape of a draft head, and the file that holds a trained one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastslow.engine.backends.cpu.draft_head import DraftShape

KIND = "fastslow-head"
NORMS = ("embedding_norm", "hidden_norm", "attention_norm", "mlp_norm", "norm")
MATRICES = ("fuse", "entry", "qkv", "out", "gate_up", "down")
AT_LEAST_ONE = ("hidden", "heads", "kv_heads", "head_dim", "neurons", "vocabulary", "window")
MINIMUM = {**dict.fromkeys(AT_LEAST_ONE, 1), "prompt": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig(DraftShape):
    """One decoder layer over the target's hidden states.

    Attributes:
        layers: target layers whose outputs are fused, 0 = the first layer's.
        vocabulary: D, tokens that can be drafted.
        prompt: how many last rows of a prompt it was trained to see; 0 = none, as in old files, which
            lack the field.
    """

    layers: tuple[int, ...]
    vocabulary: int
    prompt: int = 0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape, for all tensors of a head's file."""
        h, inner = self.hidden, self.heads * self.head_dim
        return {
            **dict.fromkeys(NORMS, (h,)),
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
            values: dict[str, Any] = {"prompt": 0, **json.loads(found.get("config", ""))}
            known = {field.name: values[field.name] for field in fields(cls)}
            config = cls(**known | {"layers": tuple(int(n) for n in known["layers"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"metadata field config lacks a field or is damaged: {error}"
            ) from None
        config._check()
        return config

    def _check(self) -> None:
        for name, minimum in MINIMUM.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < minimum:
                raise ValueError(f"{name}={value!r} must be a whole number of at least {minimum}")
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise ValueError(
                f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}, and "
                f"head_dim={self.head_dim} even"
            )
        if not self.layers or min(self.layers) < 0:
            raise ValueError(f"layers={self.layers} must name at least one target layer")


def read_metadata(path: Path) -> dict[str, str]:
    """A head file's metadata: kind, config, target (a fingerprint), provenance."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def read_head(path: Path) -> tuple[HeadConfig, dict[str, Tensor]]:
    """Config and weights of a head's file, checked.

    Raises:
        ValueError: one sentence about what is wrong with the file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            config = HeadConfig.from_metadata(file.metadata())
            names = set(file.keys())
            weights = {name: file.get_tensor(name) for name in config.shapes() if name in names}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"head {path} cannot be read: {error}") from None
    except ValueError as error:
        raise ValueError(f"head {path}: {error}") from None
    for name, shape in config.shapes().items():
        if name not in weights:
            raise ValueError(f"head {path} lacks tensor {name} of shape {list(shape)}")
        if tuple(weights[name].shape) != shape:
            found = list(weights[name].shape)
            raise ValueError(f"head {path}: tensor {name} is {found}, not {list(shape)}")
    return config, weights
