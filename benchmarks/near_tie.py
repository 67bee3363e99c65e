"""Whether rounding explains that two exact decoders differ: the position recomputed in float64.

Two answers may differ from a near tie on only. Either the two tokens' logits are closer in float64 than the rounding
error measured at that place, or two scores of the router are: then nudging the float64 router to the other choice
must lead from one answer's token to the other's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from fastslow.engine.backends.loader import load_model
from fastslow.engine.model import moge
from fastslow.engine.model.base import kv_cache_for
from fastslow.engine.model.decoder import Decoder
from fastslow.engine.model.moge import ExpertChoice, choose
from fastslow.engine.types import Rows
from fastslow.tools.forward import chain

PAGE = 16
SLACK = 8.0  # times its measured median that rounding may be
LAST = 16  # rows whose logits measure the rounding
TRIES = 32  # router ties that are tried, the closest first


class Nudge(NamedTuple):
    """A router logit to raise: `margin` is what it lacks to be chosen."""

    margin: float
    layer: int  # among the routed layers
    row: int
    expert: int


@dataclass(frozen=True)
class Finding:
    """`kind`: "tie" (explained by rounding) or "error". `gap` and `allowed` are logits."""

    kind: str
    why: str
    gap: float
    allowed: float


class Judge:
    """Compares a model with itself in float64, which is loaded when it is first needed.

    Args:
        folder: the model's checkpoint.
        model: the model in the dtype under test.
    """

    def __init__(self, folder: Path, model: Decoder) -> None:
        self._folder = folder
        self._low = model
        self._high: Decoder | None = None

    def judge(
        self, prefix: Sequence[int], ours: int, theirs: int, groups: int | None, most: int
    ) -> Finding:
        """After `prefix` plain decoding went on with `ours`, another run with `theirs`; the text may grow to `most`
        tokens."""
        if self._high is None:
            high = load_model(self._folder, dtype="float64", device=self._low.device)
            assert isinstance(high, Decoder)
            self._high = high
        low_LV, low_scores = _run(self._low, prefix, groups, most)
        high_LV, high_scores = _run(self._high, prefix, groups, most)
        best = int(high_LV[-1].argmax())
        gap = float((high_LV[-1, ours] - high_LV[-1, theirs]).abs())
        rounding = (low_LV.double() - high_LV).abs().amax(-1).median()
        allowed = SLACK * float(rounding)
        if gap <= allowed and float(high_LV[-1, best] - high_LV[-1, ours]) <= allowed:
            return Finding("tie", "two logits", gap, allowed)
        for nudge in self._nudges(low_scores, high_scores, groups):
            moved_LV, _ = _run(self._high, prefix, groups, most, nudge)
            moved = int(moved_LV[-1].argmax())
            if {best, moved} == {ours, theirs}:
                why = f"two router scores {nudge.margin:.1e} apart at row {nudge.row}"
                return Finding("tie", why, gap, allowed)
        return Finding("error", "no near tie explains it", gap, allowed)

    def _nudges(self, low: list[Tensor], high: list[Tensor], groups: int | None) -> list[Nudge]:
        """What rounding could change in the router's choices, the closest first."""
        assert self._high is not None
        config = self._high.config
        mlps = (layer.mlp for layer in self._high.weights.layers)
        scales = [x.scale for x in mlps if isinstance(x, moge.Moge) and x.scale is not None]
        found: list[Nudge] = []
        for n, (low_TE, high_TE) in enumerate(zip(low, high, strict=True)):
            allowed = SLACK * float((low_TE - high_TE).abs().amax(-1).median())
            size = config.experts // config.groups
            grouped_TGE = high_TE.view(len(high_TE), config.groups, size)
            top = grouped_TGE.topk(min(2, size), -1)
            first = torch.arange(config.groups) * size
            if size > 1:
                margins = top.values[..., 0] - top.values[..., 1]
                for row, g in (margins <= allowed).nonzero().tolist():
                    expert = int(first[g] + top.indices[row, g, 1])
                    found.append(Nudge(float(margins[row, g]), n, row, expert))
            if groups:
                best = first + top.indices[..., 0]
                weights = top.values[..., 0] + scales[n][best].log()
                order = weights.argsort(dim=-1, descending=True, stable=True)
                kept, cut = order[:, groups - 1 : groups], order[:, groups : groups + 1]
                lacks = (weights.gather(1, kept) - weights.gather(1, cut))[:, 0]
                for row in (lacks <= allowed).nonzero()[:, 0].tolist():
                    expert = int(best[row, int(cut[row])])
                    found.append(Nudge(float(lacks[row]), n, row, expert))
        return sorted(found)[:TRIES]


@contextmanager
def _watched(nudge: Nudge | None) -> Iterator[list[Tensor]]:
    """Collects the router's logits, layer by layer, and changes one of them on its way."""
    seen: list[Tensor] = []

    def watching(logits_PE: Tensor, scale_E: Tensor, groups: int, wanted: Tensor) -> ExpertChoice:
        if nudge is not None and nudge.layer == len(seen):
            logits_PE = logits_PE.clone()
            logits_PE[nudge.row, nudge.expert] += 1.01 * nudge.margin + 1e-12
        seen.append(logits_PE.double())
        return choose(logits_PE, scale_E, groups, wanted)

    with patch.object(moge, "choose", watching):
        yield seen


def _run(
    model: Decoder, text: Sequence[int], groups: int | None, most: int, nudge: Nudge | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Logits of the last rows [LAST, V], and the router's [T, E] of each routed layer."""
    count = len(text)
    kv, slots = kv_cache_for(model, -(-count // PAGE), PAGE), np.arange(count)
    outputs = range(max(0, count - LAST), count)
    segment = chain(text, slots, 0, count, groups=groups, outputs=outputs, max_len=most)
    with _watched(nudge) as seen:
        logits = model.forward(Rows.of([segment]), kv.storage).logits
    return logits, [scores[:count].cpu() for scores in seen]
