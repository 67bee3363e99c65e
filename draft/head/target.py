"""What a head takes from its target's checkpoint: embeddings, head rows, and a start for training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastslow.draft.head.config import HeadConfig
from fastslow.engine.model.checkpoint import Checkpoint
from fastslow.engine.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Ends:
    """The target's two ends, which the head shares.

    Attributes:
        embedding: [V, H] in the checkpoint's dtype.
        head: [V, H]; the same tensor where they are tied.
        norm: [H], the norm in front of the head.
    """

    embedding: Tensor
    head: Tensor
    norm: Tensor


def read_ends(folder: Path) -> Ends:
    """The ends of the model in a checkpoint folder."""
    config = ModelConfig.from_folder(folder)
    with Checkpoint.open(folder, config).reader(progress=False) as read:
        embedding = read("model.embed_tokens.weight")
        head = embedding if config.tie_word_embeddings else read("lm_head.weight")
        return Ends(embedding, head, read("model.norm.weight"))


def draft_vocabulary(tokens: Iterable[int], size: int, vocabulary: int) -> Tensor:
    """int32 [size], ascending: the commonest tokens, then the lowest ids, which merge first.

    Args:
        tokens: of the target's answers.
        size: tokens that can be drafted; at most `vocabulary`, the target's.
    """
    common = [token for token, _ in Counter(tokens).most_common(size)]
    known = set(common)
    others = (token for token in range(vocabulary) if token not in known)
    filled = [*common, *(token for _, token in zip(range(size - len(common)), others))]
    return torch.tensor(sorted(filled), dtype=torch.int32)


def first_weights(
    folder: Path, layers: tuple[int, ...], tokens: Tensor, seed: int = 0
) -> tuple[HeadConfig, dict[str, Tensor]]:
    """An untrained head, f32: its layer is the target's last one (of a MoGE layer, the shared
    expert), and the fusion passes on the last of `layers`.

    Args:
        folder: of the target.
        layers: target layers whose outputs are fused.
        tokens: int32 [D], the draft vocabulary.
        seed: of what is random.
    """
    c = ModelConfig.from_folder(folder)
    last = c.layers - 1
    routed = c.routed(last)
    config = HeadConfig(
        hidden=c.hidden_size,
        heads=c.heads,
        kv_heads=c.kv_heads,
        head_dim=c.head_dim,
        neurons=c.shared_intermediate_size if routed else c.intermediate_size,
        layers=layers,
        vocabulary=len(tokens),
        rope_theta=c.rope_theta,
        eps=c.rms_norm_eps,
    )
    prefix = f"model.layers.{last}"
    mlp = f"{prefix}.mlp.shared_expert" if routed else f"{prefix}.mlp"
    with Checkpoint.open(folder, c).reader(progress=False) as read:

        def stack(place: str, *parts: str) -> Tensor:
            return torch.cat([read(f"{place}.{part}_proj.weight").float() for part in parts])

        table = {
            "embedding_norm": torch.ones(c.hidden_size),
            "hidden_norm": torch.ones(c.hidden_size),
            "attention_norm": read(f"{prefix}.input_layernorm.weight").float(),
            "mlp_norm": read(f"{prefix}.post_attention_layernorm.weight").float(),
            "norm": read("model.norm.weight").float(),
            "qkv": stack(f"{prefix}.self_attn", "q", "k", "v"),
            "out": stack(f"{prefix}.self_attn", "o"),
            "gate_up": stack(mlp, "gate", "up"),
            "down": stack(mlp, "down"),
            "tokens": tokens,
        }
    random = torch.Generator().manual_seed(seed)
    for name, parts in (("fuse", len(layers)), ("entry", 2)):
        block = torch.randn(c.hidden_size, parts * c.hidden_size, generator=random)
        block *= 0.02
        block[:, -c.hidden_size :] += torch.eye(c.hidden_size)
        table[name] = block
    return config, table
