"""Texts through a model, outside the engine's loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastslow.engine.model.base import Model, kv_cache_for
from fastslow.engine.rows import Rows, RunningRows, Segment
from fastslow.engine.types import Ints, ModelOutput

PAGE = 16


def chain(text: Sequence[int], slots: Ints, start: int, stop: int, **how: Any) -> Segment:
    """Rows `start` to `stop` of a text whose token n lies in slots[n]; those before were read. how: the
    other fields of `Segment`."""
    return Segment(
        tokens=list(text[start:stop]),
        positions=range(start, stop),
        parents=range(-1, stop - start - 1),
        slots=slots[start:stop],
        context=slots[:start],
        **{"max_len": len(text), "running": RunningRows.chunk(stop - start), **how},
    )


def forward_texts(
    model: Model, texts: Sequence[Sequence[int]], layers: tuple[int, ...] = ()
) -> ModelOutput:
    """Logits of every row of some texts, one text after the other, in one forward. layers: whose outputs
    are given as features, too."""
    sizes = [len(text) for text in texts]
    kv = kv_cache_for(model, sum(-(-size // PAGE) for size in sizes), PAGE, False, len(sizes), 0)
    segments, first = [], 0
    for n, (text, size) in enumerate(zip(texts, sizes)):
        slots = np.arange(first, first + size)
        running = RunningRows.chunk(size, place=n)
        segments.append(chain(text, slots, 0, size, outputs=range(size), running=running))
        first += -(-size // PAGE) * PAGE
    return model.forward(Rows.of(segments), kv.storage, layers)
