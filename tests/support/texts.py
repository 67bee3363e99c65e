"""Running texts through a decoder, cut up in every way, for tests."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastslow.engine.kv.cache import KVCache
from fastslow.engine.kv.state.layout import RowState, StateLayout
from fastslow.engine.kv.state.running import RunningStates
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.base import Model
from fastslow.engine.rows import Rows, RunningRows, Segment
from fastslow.engine.types import Ints, ModelOutput


def tokens_of(count: int, seed: int = 0, vocab: int = 96) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(0, vocab, count).tolist()
    return tokens


def alike(layers: int, kv_heads: int, dim: int) -> StateLayout:
    """The layout of layers of attention that are all alike."""
    return StateLayout((RowState(kv_heads, dim, dim),) * layers)


def storage(model: Model, slots: int) -> KVStorage:
    layout = model.config.state_layout
    kv = model.storage(layout, slots, model.dtype, model.device)
    kv.running = RunningStates(layout, 1, 0, model.dtype, model.device) if layout.running else None
    return kv


def chunk(
    tokens: Sequence[int], start: int, stop: int, slots: Ints, groups: int | None = None, max_len: int = 0
) -> Segment:
    """Tokens start : stop of a text whose token i lies in slots[i], every logit wanted."""
    size = stop - start
    return Segment(
        tokens[start:stop], range(start, stop), range(-1, size - 1), slots[start:stop], slots[:start], groups,
        range(size), max_len,
    )  # fmt: skip


def logits(
    model: Model,
    tokens: Sequence[int],
    sizes: Sequence[int] | None = None,
    groups: int | None = None,
    max_len: int = 0,
    slots: Ints | None = None,
) -> Tensor:
    """[T, V] of a text alone in the batch, in chunks of `sizes` (one chunk if None)."""
    slots = np.arange(len(tokens)) if slots is None else slots
    kv = storage(model, int(slots.max()) + 1)
    parts, start = [], 0
    for size in sizes or [len(tokens)]:
        segment = chunk(tokens, start, start + size, slots, groups, max_len)
        segment.running = RunningRows.chunk(size) if kv.running is not None else None
        parts.append(model.forward(Rows.of([segment]), kv).logits)
        start += size
    return torch.cat(parts)


def cached_logits(
    model: Model, kv: KVCache, tokens: Sequence[int], sizes: Sequence[int], groups: int | None = None, request: int = 0
) -> Tensor:
    """[T, V] of a request of a cache, but for the rows that the cache has of its text, in chunks of `sizes`, of which
    the odd ones are folded into running states a step later. The request stays open."""
    start, parts = kv.open(request, tokens, None, len(tokens) - 1), []
    assert kv.reserve(request, len(tokens)) and start + sum(sizes) == len(tokens)
    for n, size in enumerate(sizes):
        stop = start + size
        segment = chunk(tokens, start, stop, np.concatenate([kv.slots(request, 0, stop)]), groups)
        segment.running = kv.running(request, range(start, stop), start if n % 2 else stop)
        parts.append(model.forward(Rows.of([segment]), kv.storage).logits)
        kv.advance(request, stop, tokens)
        start = stop
    return torch.cat(parts)


def single_tokens(model: Model, tokens: Sequence[int], only_best: Sequence[int] | Ints) -> ModelOutput:
    """A step of texts of one token each. only_best: of which no logits are wanted."""
    kv, none = storage(model, len(tokens)), np.empty(0, dtype=np.int64)
    rows = [
        Segment([token], [0], [-1], np.array([i]), none, None, [0], 0, bool(only_best[i]))
        for i, token in enumerate(tokens)
    ]
    return model.forward(Rows.of(rows), kv)
