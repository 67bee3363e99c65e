"""Texts through a model, outside the engine's loop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastslow.engine.model.base import Model, kv_cache_for
from fastslow.engine.types import ModelOutput, Rows, Segment

PAGE = 16


def forward_texts(
    model: Model, texts: Sequence[Sequence[int]], layers: tuple[int, ...] = ()
) -> ModelOutput:
    """Logits of every row of some texts, one text behind the other, in one forward.

    Args:
        model: the model.
        texts: token ids.
        layers: whose outputs are given as features, too.
    """
    sizes = [len(text) for text in texts]
    kv = kv_cache_for(model, sum(-(-size // PAGE) for size in sizes), PAGE, False)
    slots = np.arange(kv.pages * PAGE)
    segments, first = [], 0
    for text, size in zip(texts, sizes):
        segments.append(
            Segment(
                tokens=list(text),
                positions=range(size),
                parents=range(-1, size - 1),
                slots=slots[first : first + size],
                context=slots[:0],
                outputs=range(size),
                max_len=size,
            )
        )
        first += -(-size // PAGE) * PAGE
    return model.forward(Rows.of(segments), kv.storage, layers)
