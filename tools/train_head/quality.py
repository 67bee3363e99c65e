"""What a head is worth: tokens a step in greedy chains, walked over texts it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch

from fastslow.tools.train_head.batches import Shown, batches
from fastslow.tools.train_head.features import HiddenStates
from fastslow.tools.train_head.trainer import Trainer


@dataclass(frozen=True, slots=True)
class HeadQuality:
    """Of chains of n tokens.

    Attributes:
        tokens_per_step: accepted and one more; 1 is plain decoding.
        acceptance: by position, of the drafts that reached it the share accepted to it.
        steps: walked.
    """

    tokens_per_step: float
    acceptance: list[float]
    steps: int


@torch.no_grad()
def head_quality(trainer: Trainer, texts: Sequence[HiddenStates]) -> HeadQuality:
    """Walk the texts as greedy decoding would: draft, accept what the target holds likeliest, go on.
    Prompts are seen by a head that is trained to see them.

    Args:
        trainer: whose head is measured; chains are as long as its course's steps.
        texts: greedy answers of the target.
    """
    depth = trainer.course.steps
    rows = trainer.config.prompt
    shown = Shown(float(rows > 0), rows)
    reached, accepted = [0] * depth, [0] * depth
    steps = made = 0
    for batch in batches(texts, trainer.course.rows, shown, trainer.config.hidden, Random(0)):
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
