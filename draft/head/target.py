"""The parts of a target's checkpoint that a head uses, and an untrained head for it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastslow.draft.head.config import NORMS, HeadConfig
from fastslow.engine.model.checkpoint import Checkpoint, floats
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.row_file import RowFile


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


def draft_vocabulary(tokens: Iterable[int], size: int, vocabulary: int, least: int = 3) -> Tensor:
    """int32 [size], ascending: the commonest tokens, then the lowest ids, which merge first.

    Args:
        tokens: of the target's answers.
        size: tokens that can be drafted; at most `vocabulary`, the target's.
        least: how often a token must come to be common.
    """
    common = [token for token, count in Counter(tokens).most_common(size) if count >= least]
    known = set(common)
    others = (token for token in range(vocabulary) if token not in known)
    filled = [*common, *(token for _, token in zip(range(size - len(common)), others))]
    return torch.tensor(sorted(filled), dtype=torch.int32)


def first_weights(
    folder: Path, layers: tuple[int, ...], tokens: Tensor, seed: int = 0
) -> tuple[HeadConfig, dict[str, Tensor]]:
    """An untrained f32 head: its output is the last of `layers`, its own layer adds nothing yet.

    Args:
        folder: of the target, whose heads and widths the head's layer takes (of a MoGE layer the
            shared expert's).
        layers: target layers whose outputs are fused.
        tokens: int32 [D], the draft vocabulary.
        seed: of the random weights.
    """
    c = ModelConfig.from_folder(folder)
    config = HeadConfig(
        hidden=c.hidden_size,
        heads=c.heads,
        kv_heads=c.kv_heads,
        head_dim=c.head_dim,
        neurons=c.shared_intermediate_size or c.intermediate_size,
        layers=layers,
        vocabulary=len(tokens),
        rope_theta=c.rope_theta,
        eps=c.rms_norm_eps,
    )
    shapes = config.shapes()
    rng = torch.Generator().manual_seed(seed)

    def random(name: str, size: float) -> Tensor:
        return torch.randn(shapes[name], generator=rng) * size

    table = {name: torch.ones(shapes[name]) for name in NORMS} | {"tokens": tokens}
    table["norm"] = read_ends(folder).norm.float()
    # The last layer's features come last, and so does the hidden state in front of the layer.
    for name in ("fuse", "entry"):
        table[name] = random(name, 0.02)
        table[name][:, -c.hidden_size :] += torch.eye(c.hidden_size)
    for name in ("qkv", "gate_up"):
        table[name] = random(name, c.hidden_size**-0.5)
    for name in ("out", "down"):
        table[name] = torch.zeros(shapes[name])
    return config, table
