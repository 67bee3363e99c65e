"""The decoder for accelerators: keys in blocks, and no wait for the host inside a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.backends.accelerator.kv import BLOCK, BlockStorage
from fastslow.engine.backends.accelerator.layout import Tail, attention_layout
from fastslow.engine.backends.accelerator.ops import DeviceMlp, DeviceTables, ExpertChoice, LayerKV
from fastslow.engine.backends.accelerator.recorded import Recorder
from fastslow.engine.backends.accelerator.staging import Staging
from fastslow.engine.backends.accelerator.step import PagedStep, Result
from fastslow.engine.backends.accelerator.weights import Stacked, StackedLayer, StackedMoge
from fastslow.engine.kv.storage import KVStorage
from fastslow.engine.model.base import LayeredModel, check_step
from fastslow.engine.model.rope import Rotary
from fastslow.engine.types import ModelOutput, Rows

TAIL = 1 << 16  # slots that a tail reads at once


def choose_on_device(
    logits_TE: Tensor, scale_E: Tensor, groups: int, wanted_T: Tensor
) -> ExpertChoice:
    """As `engine.model.moge.choose`, all of it on the device: experts int32 [T, G], weights [T, G].

    wanted_T: integer [T], how many groups run for each row. What does not run has the number E, one
    more than there are, and no weight. Ties are broken by comparing, not by a library's order.
    """
    probs = logits_TE.softmax(-1)
    count = probs.shape[1]
    size = count // groups
    each = probs.view(-1, groups, size)
    best = each.amax(-1, keepdim=True)
    number = torch.arange(size, dtype=torch.int32, device=probs.device)
    first = torch.where(each == best, number, size - 1).amin(-1)
    offsets = torch.arange(0, count, size, dtype=torch.int32, device=probs.device)
    experts = first + offsets
    weights = best[..., 0] * scale_E.index_select(0, experts.flatten()).view(experts.shape)
    # a group's rank: how many weigh more, or as much and come first
    mine, theirs = weights[:, :, None], weights[:, None, :]
    place = torch.arange(groups, device=probs.device)
    ahead = (theirs > mine) | ((theirs == mine) & (place[None, :] < place[:, None]))
    runs = ahead.sum(-1) < wanted_T[:, None]
    return ExpertChoice(torch.where(runs, experts, count), torch.where(runs, weights, 0.0))


class PagedDecoder(LayeredModel[Stacked]):
    """The counterpart of `engine.model.decoder.Decoder`, on an accelerator's kernels.

    Small steps are recorded by their padded size and replayed (`recorded.py`); all others run kernel
    by kernel. Whether a row's bits depend on its neighbours is the kernels' to say.

    Attributes:
        recorder: what was recorded, and how often it ran.
    """

    def __init__(self, weights: Stacked, layers: Sequence[int] | None = None) -> None:
        super().__init__(weights, layers)
        self.ops = weights.ops
        c = weights.config
        self._rotary = Rotary(c)
        self._staging = Staging(self.ops)
        self.recorder = Recorder(self.ops, self._staging, c.context, c.groups)

    @property
    def storage(self) -> type[KVStorage]:
        return self.ops.storage

    @torch.inference_mode()
    def forward(self, rows: Rows, kv: KVStorage, features: tuple[int, ...] = ()) -> ModelOutput:
        """See `Model.forward`; all results are on the CPU."""
        check_step(rows, kv, self.storage, features, self.layers)
        assert isinstance(kv, BlockStorage)
        angles = self._rotary.at(rows)
        with self.ops.active():
            found = self.recorder.replay(self._run, rows, angles, kv, features)
            if found is None:
                layout = attention_layout(rows, BLOCK, self.ops.most_rows, self.ops.merges)
                step = PagedStep.of(rows, angles, layout, self.ops, self.config.groups)
                found = self._run(step.to(self.device, self._staging), kv, features)
            best = np.where(rows.only_best, found.best.cpu().numpy(), -1)
            logits = found.logits[:0] if rows.only_best.all() else found.logits
            seen = _fetched(found.features) if features else None
            return ModelOutput(_fetched(logits), seen, best)

    def _run(self, step: PagedStep, kv: BlockStorage, features: tuple[int, ...]) -> Result:
        """All of a step on the device."""
        w, eps = self.weights, self.config.rms_norm_eps
        x_TH = w.embedding.index_select(0, step.tokens)
        taken: dict[int, Tensor] = {}
        first, *others = self.layers
        fresh_TH = self.ops.rms_norm(x_TH, w.layers[first].attention_norm, eps)
        norms = [*(w.layers[n].attention_norm for n in others), w.norm]
        for n, next_norm in zip(self.layers, norms, strict=True):
            layer = w.layers[n]
            mixed_TH = self._attention(fresh_TH, layer, LayerKV(kv.k[n], kv.v[n]), step)
            fresh_TH, x_TH = self.ops.add_rms_norm(mixed_TH, x_TH, layer.mlp_norm, eps)
            moved_TH = self._mlp(fresh_TH, layer.mlp, step)
            fresh_TH, x_TH = self.ops.add_rms_norm(moved_TH, x_TH, next_norm, eps)
            if n in features:
                taken[n] = x_TH.index_select(0, step.feature_rows)
        last_MH = fresh_TH.index_select(0, step.outputs)
        logits_MV = self.ops.linear(last_MH, w.head)
        logits_MV = logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32))
        joined = torch.cat([taken[n] for n in features], -1) if features else last_MH[:, :0]
        return Result(logits_MV, _first_best(logits_MV), joined)

    def _attention(self, x_TH: Tensor, layer: StackedLayer, kv: LayerKV, step: PagedStep) -> Tensor:
        c = self.config
        mixed = self.ops.linear(x_TH, layer.qkv).view(len(x_TH), -1, c.head_dim)
        turning = mixed[:, : c.heads + c.kv_heads].to(step.cos.dtype)
        turned = self.ops.rotate(turning, step.cos, step.sin).to(x_TH.dtype)
        k_TKD = self._widened(turned[:, c.heads :])
        v_TKD = self._widened(mixed[:, c.heads + c.kv_heads :])
        self.ops.store(k_TKD, v_TKD, kv, step.slots)
        q_THD = self._widened(turned[:, : c.heads])
        seen_THD = self._attend(q_THD, kv, step)[..., : c.head_dim]
        return self.ops.linear(seen_THD.reshape(len(x_TH), -1), layer.out)

    def _widened(self, x_TND: Tensor) -> Tensor:
        """Filled up with zeros to the width of the cache; they add nothing to any product."""
        room = self.storage.width(self.config.head_dim) - self.config.head_dim
        return F.pad(x_TND, (0, room)) if room else x_TND

    def _attend(self, q_THD: Tensor, kv: LayerKV, step: PagedStep) -> Tensor:
        if step.tail is None:
            assert step.chains is not None
            return self.ops.attend(q_THD, kv, step.chains)
        out_THD = torch.empty_like(q_THD)
        if step.chains is not None:
            assert step.rows is not None
            q = q_THD.index_select(0, step.rows)
            seen = self.ops.attend(q, kv, step.chains)
            out_THD.index_copy_(0, step.rows, seen)
        q = q_THD.index_select(0, step.tail.rows)
        seen = self._attend_tail(q, kv, step.tail)
        return out_THD.index_copy_(0, step.tail.rows, seen)

    def _attend_tail(self, q_RHD: Tensor, kv: LayerKV, tail: Tail[Tensor, DeviceTables]) -> Tensor:
        """A few keys by plain products; what blocks hold joins them by its weight."""
        lines, width = tail.slots.shape
        q = q_RHD.index_select(0, tail.gather.flatten()).view(lines, -1, *q_RHD.shape[1:])
        each = max(1, TAIL // width)
        some = [slice(i, i + each) for i in range(0, lines, each)]
        parts = [self._attend_slots(q[i], kv, tail.slots[i], tail.hidden[i]) for i in some]
        own, own_weight = (
            torch.cat(x).flatten(0, 1).index_select(0, tail.places) for x in zip(*parts)
        )
        if tail.runs is None:
            return own.to(q_RHD.dtype)
        text, text_weight = self.ops.attend_in_part(q_RHD, kv, tail.runs)
        blind = tail.blind[:, None, None]  # such a row's run read unused slots, maybe NaN
        text, text_weight = text.masked_fill(blind, 0), text_weight.masked_fill(blind, -torch.inf)
        most = torch.maximum(own_weight, text_weight)
        own_weight, text_weight = (own_weight - most).exp(), (text_weight - most).exp()
        total = own * own_weight + text.to(own.dtype) * text_weight
        return (total / (own_weight + text_weight)).to(q_RHD.dtype)

    def _attend_slots(
        self, q_BQHD: Tensor, kv: LayerKV, slots_BW: Tensor, hidden_BQW: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rows over single slots: [B, Q, heads, D], and the logarithms of the sums, [B, Q, heads, 1]."""
        kv_heads, dtype = self.ops.shape.kv_heads, self.ops.tail_dtype or q_BQHD.dtype
        k, v = (
            self.ops.gather(side, slots_BW.flatten())
            .view(*slots_BW.shape, kv_heads, 1, -1)
            .permute(0, 2, 3, 1, 4)
            .to(dtype)
            for side in kv
        )  # [B, kv_heads, 1, W, D]
        q = q_BQHD.view(*q_BQHD.shape[:2], kv_heads, -1, q_BQHD.shape[-1]).permute(0, 2, 3, 1, 4)
        scores = (q.to(dtype) * self.ops.shape.scale) @ k.transpose(-1, -2)
        scores = scores.to(torch.promote_types(dtype, torch.float32))
        scores = scores.masked_fill(hidden_BQW[:, None, None], -torch.inf)
        weight = scores.logsumexp(-1, keepdim=True)
        out = (scores - weight).exp().to(dtype) @ v  # [B, kv_heads, group, Q, D]
        both = (x.permute(0, 3, 1, 2, 4).flatten(2, 3) for x in (out, weight))
        return next(both), next(both)

    def _mlp(self, x_TH: Tensor, mlp: DeviceMlp | StackedMoge, step: PagedStep) -> Tensor:
        shared = mlp.shared if isinstance(mlp, StackedMoge) else mlp
        inner = self.ops.silu_product(self.ops.linear(x_TH, shared.gate_up))
        y_TH = self.ops.linear(inner, shared.down)
        if isinstance(mlp, DeviceMlp) or not step.routed:
            return y_TH
        logits_TE = self.ops.route(x_TH, mlp.router)
        choice = choose_on_device(logits_TE, mlp.scale, self.config.groups, step.groups)
        return self.ops.experts(x_TH, choice, mlp.experts, y_TH)


def _fetched(values: Tensor) -> Tensor:
    """A copy on the CPU: the next step may write to the memory of this one's results."""
    return torch.empty_like(values, device="cpu").copy_(values)


def _first_best(logits_MV: Tensor) -> Tensor:
    """int32 [M]: the first of the likeliest tokens, -1 where some logit is not finite."""
    if not len(logits_MV):
        return logits_MV.new_empty(0, dtype=torch.int32)
    number = torch.arange(logits_MV.shape[1], dtype=torch.int32, device=logits_MV.device)
    top = logits_MV.amax(-1, keepdim=True)
    first = torch.where(logits_MV == top, number, logits_MV.shape[1]).amin(-1)
    return torch.where(logits_MV.isfinite().all(-1), first, -1)
