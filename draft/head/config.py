"""The shape of a draft head, and the file that holds a trained one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastslow.engine.backends.cpu.draft_head import DraftShape
from fastslow.engine.backends.cpu.library import LIMITS, check_limits
from fastslow.engine.host.files import open_file, parse_object, shown

KIND = "fastslow-head"
NORMS = ("embedding_norm", "hidden_norm", "attention_norm", "mlp_norm", "norm")
WHOLE = (torch.int64, torch.int32, torch.int16, torch.uint8)
MATRICES = ("fuse", "entry", "qkv", "out", "gate_up", "down")


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
            raise ValueError(f"metadata field kind={shown(found.get('kind'))} must be {KIND!r}")
        try:
            read = parse_object(found.get("config", ""), "it")
            values: dict[str, Any] = {"prompt": 0, **read}
            known = {field.name: values[field.name] for field in fields(cls)}
            config = cls(**known | {"layers": tuple(known["layers"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"metadata field config lacks a field or is damaged: {error!s:.200}"
            ) from None
        config.check()
        return config

    def check(self) -> None:
        """ValueError, naming the field, its value and the limit."""
        DraftShape.check(self)
        check_limits(vocabulary=self.vocabulary)
        most = LIMITS["position"][1]
        if type(self.prompt) is not int or not 0 <= self.prompt <= most:
            raise ValueError(f"prompt={shown(self.prompt)} must be a whole number in 0..{most}")
        least = min(self.layers, default=-1) if all(type(n) is int for n in self.layers) else -1
        if least < 0:
            raise ValueError(f"layers={shown(self.layers)} must name at least one target layer")
        check_limits(inputs=len(self.layers) * self.hidden)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file; OSError or SafetensorError where it cannot be read."""
    open_file(path).close()  # the library would wait for a FIFO
    with safe_open(path, framework="pt") as file:
        yield file


def read_metadata(path: Path) -> dict[str, str]:
    """A head file's metadata: kind, config, target (a fingerprint), provenance."""
    with opened(path) as file:
        return dict(file.metadata() or {})


def read_head(path: Path) -> tuple[HeadConfig, dict[str, Tensor]]:
    """Config and weights of a head's file, checked.

    Raises:
        ValueError: one sentence about what is wrong with the file.
    """
    try:
        with opened(path) as file:
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
        whole, dtype = name == "tokens", weights[name].dtype
        if dtype not in WHOLE if whole else not dtype.is_floating_point:
            kind = "whole numbers" if whole else "floats"
            raise ValueError(f"head {path}: tensor {name} is of {dtype}, and must hold {kind}")
    if (least := int(weights["tokens"].min())) < 0:
        raise ValueError(f"head {path}: token {least} of tensor tokens must be at least 0")
    return config, weights
