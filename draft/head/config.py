"""The shape of a draft head, the file of a trained one, and what a head needs of its target's checkpoint."""

from __future__ import annotations

import hashlib
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
from fastslow.engine.checkpoint.checkpoint import Checkpoint, floats
from fastslow.engine.checkpoint.row_file import RowFile
from fastslow.engine.host.files import about, open_file, parse_object, shown
from fastslow.engine.model.config import ModelConfig

KIND = "fastslow-head"
NORMS = ("embedding_norm", "hidden_norm", "attention_norm", "mlp_norm", "norm")
WHOLE = (torch.int64, torch.int32, torch.int16, torch.uint8)
MATRICES = ("fuse", "entry", "qkv", "out", "gate_up", "down")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig(DraftShape):
    """A head's shape: one decoder layer over the target's hidden states. layers: target layers whose outputs are fused,
    0 = the first layer's. vocabulary: D, tokens that can be drafted. prompt: last rows of a prompt seen in training."""

    layers: tuple[int, ...]
    vocabulary: int
    prompt: int = 0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape, for all tensors of a head's file."""
        h, inner = self.hidden, self.queries
        return {
            **dict.fromkeys(NORMS, (h,)),
            "fuse": (h, len(self.layers) * h),
            "entry": (h, 2 * h),
            "qkv": (inner + 2 * self.keys, h),
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
            known = {field.name: read[field.name] for field in fields(cls)}
            config = cls(**known | {"layers": tuple(known["layers"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"metadata field config lacks a field or is damaged: {error!s:.200}"
            ) from None
        config.check()
        return config

    def check(self) -> None:
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
    """Config and weights of a head's file; ValueError in one sentence about what is wrong with it."""
    try:
        with about(f"head {path}"), opened(path) as file:
            config = HeadConfig.from_metadata(file.metadata())
            names = set(file.keys())
            weights = {name: file.get_tensor(name) for name in config.shapes() if name in names}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"head {path!s:.120} cannot be read: {error!s:.99}") from None
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


@dataclass(frozen=True, slots=True)
class Ends:
    """The target's embedding [V, H] and head [V, H], the same tensor where they are tied, and the norm [H]
    in front of the head; in the checkpoint's dtype."""

    embedding: Tensor
    head: Tensor
    norm: Tensor


@dataclass(frozen=True, slots=True)
class StoredEnds:
    """The same for the kernels, read row by row from the file; without a head where the draft head has
    its own."""

    embedding: Tensor | RowFile
    head: RowFile | None = None


def stored_ends(folder: Path) -> StoredEnds | None:
    """The ends of the model in a folder, left in its file; None where they have to be read whole."""
    config = ModelConfig.from_folder(folder)
    checkpoint = Checkpoint.own(folder, config)
    embedding = checkpoint.rows("model.embed_tokens.weight")
    head = embedding if config.tie_word_embeddings else checkpoint.rows("lm_head.weight")
    return None if embedding is None or head is None else StoredEnds(embedding, head)


def read_ends(folder: Path) -> Ends:
    """The ends of the model in a folder, in memory."""
    config = ModelConfig.from_folder(folder)
    with floats(folder, config) as read:
        embedding = read("model.embed_tokens.weight")
        head = embedding if config.tie_word_embeddings else read("lm_head.weight")
        return Ends(embedding, head, read("model.norm.weight"))


def fingerprint(folder: Path) -> str:
    """A digest of the target's shape, its norms and the first matrix of its last layer."""
    config = ModelConfig.from_folder(folder)
    count, experts = len(config.layers), config.routed.experts if config.routed else 0
    last = f"model.layers.{count - 1}"
    matrix = next(iter(config.layers[-1].mixer.tensors(last, config.hidden_size))).name
    norms = "model.norm", f"{last}.input_layernorm", f"{last}.post_attention_layernorm"
    names = (*(f"{norm}.weight" for norm in norms), matrix)
    shape = (config.architecture, count, config.hidden_size, experts)
    digest = hashlib.sha256(repr(shape).encode())
    with floats(folder, config) as read:
        for name in names:
            digest.update(read(name).float().numpy().tobytes())
    return digest.hexdigest()[:16]
