"""One rank's part of a decoder: the same layers as `model.decoder`, with collectives between."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.kv.storage import KVStorage
from fastslow.engine.model.attention import Step
from fastslow.engine.model.moge import Moge
from fastslow.engine.model.weights import Weights
from fastslow.engine.parallel.collectives import Collectives
from fastslow.engine.parallel.deal import Deal
from fastslow.engine.parallel.outputs import Outputs
from fastslow.engine.parallel.place import RankPlace
from fastslow.engine.types import ModelOutput, Rows


class PartDecoder:
    """The part of a decoder that one rank runs (H2P; Pangu Pro MoE, arXiv 2505.21411).

    The residual stream is dealt by rows: a rank keeps, norms and adds only its own. Around attention
    the ranks of one copy of it gather their normed rows and scatter the partial sums of their heads; around
    the MLP all ranks do.

    Args:
        place: of this rank.
        weights: its part, see `part_weights`.
        dp_group: the ranks of its copy of attention, in order.
        everyone: all ranks.
    """

    def __init__(
        self, place: RankPlace, weights: Weights, dp_group: Collectives, everyone: Collectives
    ) -> None:
        self.place = place
        self.weights = weights
        self.dp_group = dp_group
        self.everyone = everyone
        self._outputs = Outputs(place, weights, everyone)

    @torch.inference_mode()
    def forward(
        self, rows: Rows, kv: KVStorage, layers: Sequence[int], features: Sequence[int]
    ) -> ModelOutput | None:
        """As `Decoder.forward`, on all ranks at once with the same rows; None but on rank 0.

        kv: this rank's heads, slots of its data-parallel rank. layers: those that run.
        """
        deal = Deal.of(rows, self.place, kv.slots)
        x_nH = self._embed(deal)
        step = self._step(deal)
        wanted, looked = deal.holders(rows.outputs), deal.holders(rows.seen)
        mine, mine_seen = (
            torch.from_numpy(at[holders == self.place.rank]).to(x_nH.device)
            for holders, at in (wanted, looked)
        )
        seen: dict[int, Tensor] = {}
        eps = self.weights.config.rms_norm_eps
        ops = self.weights.ops
        for n in layers:
            layer = self.weights.layers[n]
            fresh = ops.rms_norm(x_nH, layer.attention_norm, eps)
            fresh_PH = self.dp_group.all_gather(fresh, "attention all-gather")
            if step is None:
                part_PH = torch.zeros_like(fresh_PH)  # no request lives here
            else:
                part_PH = layer.attention(_pad(fresh_PH, ops.rows), kv.k[n], kv.v[n], step)
            part_PH = part_PH[: len(fresh_PH)]
            x_nH = x_nH + self.dp_group.reduce_scatter(part_PH, "attention reduce-scatter")
            fresh = ops.rms_norm(x_nH, layer.mlp_norm, eps)
            fresh_PH = self.everyone.all_gather(fresh, "mlp all-gather")
            padded_PH = _pad(fresh_PH, ops.rows)
            if isinstance(layer.mlp, Moge):
                groups = np.pad(deal.groups, (0, len(padded_PH) - len(fresh_PH)))
                part_PH = layer.mlp(padded_PH, groups)
            else:
                part_PH = layer.mlp(padded_PH)
            part_PH = part_PH[: len(fresh_PH)]
            x_nH = x_nH + self.everyone.reduce_scatter(part_PH, "mlp reduce-scatter")
            if n in features:
                seen[n] = x_nH.index_select(0, mine_seen)
        known = None
        if features:
            known = self._outputs.features(torch.cat([seen[n] for n in features], -1), looked[0])
        return self._outputs(x_nH.index_select(0, mine), known, wanted[0], rows.only_best)

    def _embed(self, deal: Deal) -> Tensor:
        """[n, H]: every rank looks up the tokens of its own vocabulary, the rest are zeros."""
        ids = self.place.vocabulary()
        held = (deal.tokens >= ids.start) & (deal.tokens < ids.stop)
        table = self.weights.embedding
        at = torch.from_numpy(np.where(held, deal.tokens - ids.start, 0)).to(table.device)
        rows_PH = table.index_select(0, at)
        rows_PH.mul_(torch.from_numpy(held).to(table.device, table.dtype)[:, None])
        return self.everyone.reduce_scatter(rows_PH, "embedding reduce-scatter")

    def _step(self, deal: Deal) -> Step | None:
        """What the layers share in this copy of attention; None where it has no rows."""
        if deal.own is None:
            return None
        w, size = self.weights, deal.each * self.place.attention
        padded = size + -size % w.ops.rows
        return Step.of(deal.own, padded, w.config, w.ops, w.dtype, w.device)


def _pad(x_PH: Tensor, multiple: int) -> Tensor:
    return F.pad(x_PH, (0, 0, 0, -len(x_PH) % multiple))
