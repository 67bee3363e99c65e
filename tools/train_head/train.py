"""From prompts to a head: answers, features, training, evaluation. A run that was stopped continues in
the part where it stopped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from loguru import logger
from safetensors.torch import save_file
from torch import Tensor

from fastslow.draft.head.config import NORMS, HeadConfig, fingerprint, read_ends
from fastslow.engine.backends.alike import AlikeLayers
from fastslow.engine.host.progress import Report, silent
from fastslow.engine.model.base import Model
from fastslow.engine.model.config import ModelConfig
from fastslow.models.locate import resolve_model
from fastslow.tools.job_options import HeadOptions, TrainConfig
from fastslow.tools.kept import KeptWork
from fastslow.tools.prompts import Conversation
from fastslow.tools.train_head.answers import Ask, TrainText, answers
from fastslow.tools.train_head.batches import Shown, batches
from fastslow.tools.train_head.features import HiddenStates, Shards
from fastslow.tools.train_head.trainer import Measured, Trainer

HELD = 0.05  # share of prompts that nothing is learnt from
MOST_HELD = 64
ANSWER_ROWS = 256  # that attention has room for besides a prompt
CHECKPOINT = "checkpoint.safetensors"  # in the work folder


@dataclass(frozen=True, slots=True)
class HeadQuality:
    """Quality of chains of n drafted tokens."""

    tokens_per_step: float  # accepted and one more; 1 is plain decoding
    acceptance: list[float]  # by position: of the drafts that reached it, the share accepted to it
    steps: int  # walked


@torch.no_grad()
def head_quality(trainer: Trainer, texts: Sequence[HiddenStates]) -> HeadQuality:
    """Walk greedy answers of the target as decoding would: draft a chain as long as those it was trained
    for, accept what the target holds likeliest, continue after it."""
    depth = trainer.train_config.steps
    rows = trainer.config.prompt
    shown = Shown(float(rows > 0), rows)
    reached, accepted = [0] * depth, [0] * depth
    steps = made = 0
    for batch in batches(texts, trainer.train_config.rows, shown, trainer.config.hidden, Random(0)):
        _, hits = trainer.measure(batch)
        for b, end in enumerate(batch.end[:, 0].tolist()):
            row = 0
            while row + depth <= end:  # a draft that would pass the end says nothing
                run = 0
                while run < depth:
                    reached[run] += 1
                    if not bool(hits[run][b, row + run]):
                        break
                    accepted[run] += 1
                    run += 1
                steps, made, row = steps + 1, made + run + 1, row + run + 1
    shares = [a / r for a, r in zip(accepted, reached) if r]
    return HeadQuality(made / steps if steps else 0.0, shares, steps)


def train_head(
    options: HeadOptions,
    training: TrainConfig,
    model: Model,
    ask: Ask,
    prompts: Sequence[Conversation],
    report: Report = silent,
    on_update: Callable[[Measured], None] = lambda measured: None,
) -> HeadQuality:
    """Make a head; returns its quality on answers held out. model, ask: the target, for features and for
    answers. prompts: those of `options.data`. ValueError: too few prompts, or a checkpoint of another head."""
    if len(prompts) < 2:
        raise ValueError(f"data must hold at least 2 prompts, got {len(prompts)}")
    target, count = resolve_model(options.target), len(model.config.layers)
    # an early, a late and the last one, which the head fuses
    layers = tuple(sorted({count // 3 - 1, 2 * count // 3 - 1, count - 1} - {-1}))
    kept = KeptWork(options.out, target, options.taught)
    held, taught = _parted(answers(kept, prompts, ask, options.answer, report))
    shards = Shards(kept, "features", model, taught, layers)
    shards.make(report)
    walked = Shards(kept, "held-out", model, held, layers).make()  # MOST_HELD of them are one shard
    vocabulary = model.config.vocab_size
    used = (token for text in taught for token in text.tokens[text.start :])
    tokens = draft_vocabulary(used, min(options.vocabulary, vocabulary), vocabulary)
    config, weights = first_weights(target, layers, tokens, training.seed)
    if training.prompts:
        rows = training.prompt_rows
        config = replace(config, prompt=rows, window=max(config.window, rows + ANSWER_ROWS))
    trainer = Trainer(config, weights, read_ends(target), training, kept.folder / CHECKPOINT)

    def updated(measured: Measured) -> None:
        shares = " ".join(f"{share:.0%}" for share in measured.right)
        done = measured.tokens / training.tokens
        report(done, f"training, loss {measured.loss:.2f}, right {shares}")
        on_update(measured)

    trainer.run(shards.epoch, updated)
    found = head_quality(trainer, walked)
    quality = {
        "tokens_per_step": round(found.tokens_per_step, 3),
        "acceptance": [round(share, 3) for share in found.acceptance],
    }
    provenance = {"tokens": trainer.tokens, "answers": len(taught), "held_out": quality}
    save_head(trainer, options.out, fingerprint(target), provenance)
    return found


def _parted(texts: Sequence[TrainText]) -> tuple[list[TrainText], list[TrainText]]:
    """Held out and taught: of the first few only the greedy ones are walked."""
    count = max(1, min(MOST_HELD, int(HELD * len(texts))))
    held = [text for text in texts[:count] if text.greedy]
    if not held:
        logger.info("no held-out answer is greedy: the figures are of sampled ones")
    return held or list(texts[:count]), list(texts[count:])


def save_head(trainer: Trainer, path: Path, target: str, provenance: dict[str, Any]) -> None:
    """Write a head's file: weights in bfloat16, its shape, whose it is, and how it came about."""
    table = {name: p.detach().to(torch.bfloat16) for name, p in trainer.weights.items()}
    table["tokens"] = trainer.vocabulary
    part = path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"target": target, "provenance": json.dumps(provenance)}
    save_file(table, part, trainer.config.metadata() | facts)
    part.rename(path)


def draft_vocabulary(tokens: Iterable[int], size: int, vocabulary: int, least: int = 3) -> Tensor:
    """int32 [size], ascending: the tokens that come at least `least` times, the commonest first, then the
    lowest ids, which merge first."""
    common = [token for token, count in Counter(tokens).most_common(size) if count >= least]
    known = set(common)
    others = (token for token in range(vocabulary) if token not in known)
    filled = [*common, *(token for _, token in zip(range(size - len(common)), others))]
    return torch.tensor(sorted(filled), dtype=torch.int32)


def first_weights(
    folder: Path, layers: tuple[int, ...], tokens: Tensor, seed: int = 0
) -> tuple[HeadConfig, dict[str, Tensor]]:
    """An untrained f32 head: its output is the last of the fused `layers`, its own layer adds nothing yet. It
    takes the target's heads and widths. tokens: int32 [D], the draft vocabulary."""
    c = ModelConfig.from_folder(folder)
    alike = AlikeLayers.of(c)
    a, routed = alike.attention, alike.routed
    config = HeadConfig(
        hidden=c.hidden_size,
        heads=a.heads,
        kv_heads=a.kv_heads,
        head_dim=a.head_dim,
        neurons=routed.shared.width if routed and routed.shared else alike.widest,
        layers=layers,
        vocabulary=len(tokens),
        rope_theta=alike.rope.theta,
        eps=alike.eps,
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
