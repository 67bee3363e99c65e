"""The parts of a target's checkpoint that a head uses."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fastslow.engine.checkpoint.checkpoint import Checkpoint, floats
from fastslow.engine.checkpoint.row_file import RowFile
from fastslow.engine.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Ends:
    """The target's embedding and head, which the draft head shares.

    Attributes:
        embedding: [V, H] in the checkpoint's dtype.
        head: [V, H]; the same tensor where they are tied.
        norm: [H], the norm in front of the head.
    """

    embedding: Tensor
    head: Tensor
    norm: Tensor


@dataclass(frozen=True, slots=True)
class StoredEnds:
    """The same, left in the checkpoint's file and read row by row."""

    embedding: RowFile
    head: RowFile


@dataclass(frozen=True, slots=True)
class HeadlessEnds:
    """Of a draft head whose file has a head too."""

    embedding: Tensor | RowFile
    head: None = None


def stored_ends(folder: Path) -> StoredEnds | None:
    """The ends of the model in a checkpoint folder; None where they have to be read whole."""
    config = ModelConfig.from_folder(folder)
    checkpoint = Checkpoint.own(folder, config)
    embedding = checkpoint.rows("model.embed_tokens.weight")
    head = embedding if config.tie_word_embeddings else checkpoint.rows("lm_head.weight")
    return None if embedding is None or head is None else StoredEnds(embedding, head)


def read_ends(folder: Path) -> Ends:
    """The ends of the model in a checkpoint folder."""
    config = ModelConfig.from_folder(folder)
    with floats(folder, config) as read:
        embedding = read("model.embed_tokens.weight")
        head = embedding if config.tie_word_embeddings else read("lm_head.weight")
        return Ends(embedding, head, read("model.norm.weight"))


def fingerprint(folder: Path) -> str:
    """A digest of the target's shape, its norms and the queries of its last layer."""
    config = ModelConfig.from_folder(folder)
    last = f"model.layers.{config.layers - 1}"
    names = (
        "model.norm.weight",
        f"{last}.input_layernorm.weight",
        f"{last}.post_attention_layernorm.weight",
        f"{last}.self_attn.q_proj.weight",
    )
    shape = (config.architecture, config.layers, config.hidden_size, config.experts)
    digest = hashlib.sha256(repr(shape).encode())
    with floats(folder, config) as read:
        for name in names:
            digest.update(read(name).float().numpy().tobytes())
    return digest.hexdigest()[:16]
