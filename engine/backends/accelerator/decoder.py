"""The decoder for accelerators: keys in blocks, and no wait for the host inside a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.backends.accelerator.attention import attend
from fastslow.engine.backends.accelerator.kv import BLOCK, BlockStorage
from fastslow.engine.backends.accelerator.ops import LayerKV
from fastslow.engine.backends.accelerator.recorded import Recorder
from fastslow.engine.backends.accelerator.step import PagedStep, Result, Staging, StepPlan
from fastslow.engine.backends.accelerator.weights import Stacked
from fastslow.engine.backends.torch.mtp import MtpDecoder
from fastslow.engine.backends.torch.weights import LayeredModel, LayerModule
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.base import check_step, inputs_of
from fastslow.engine.model.ffn.dense import MlpModule
from fastslow.engine.model.ffn.experts import ExpertsModule
from fastslow.engine.model.mixers.grouped import GroupedModule
from fastslow.engine.model.mixers.latent import LatentModule
from fastslow.engine.model.mixers.rope import Rotary
from fastslow.engine.model.ops import sigmoid, soft_cap, wide
from fastslow.engine.model.parts import FfnModule, MixerModule
from fastslow.engine.rows import Rows
from fastslow.engine.types import Features, Floats, ModelOutput

Attended = Callable[[Tensor, LayerKV], Tensor]


class PagedDecoder(LayeredModel[Stacked]):
    """The counterpart of `engine.backends.torch.decoder.Decoder`, on an accelerator's kernels.

    Small steps are recorded by their padded size and replayed (`recorded.py`); all others run kernel
    by kernel. Whether a row's bits depend on its neighbours is the kernels' to say.
    """

    def __init__(self, weights: Stacked, layers: Sequence[int] | None = None) -> None:
        super().__init__(weights, layers)
        self.ops, self.storage = weights.kernels, weights.storage
        c = weights.config
        self._rotary = Rotary(weights.alike.rope)
        self._staging = Staging(self.ops)
        self._plan = StepPlan.of(c, self.layers, self.ops)
        self.recorder = Recorder(self._plan, self._staging, c.context)

    @cached_property
    def mtp(self) -> PagedMtp | None:
        return PagedMtp(self.weights) if self.weights.mtp else None

    @torch.inference_mode()
    def forward(self, rows: Rows, kv: KVStorage, features: tuple[int, ...] = ()) -> ModelOutput:
        """See `Model.forward`; all results are on the CPU."""
        check_step(rows, kv, self.storage, features, self.layers)
        assert isinstance(kv, BlockStorage)
        angles = self._rotary.at(rows)
        with self.ops.active():
            found = self.recorder.replay(self._run, rows, angles, kv, features)
            if found is None:
                found = self._run(self._sent(rows, angles), kv, features)
            return self._fetch(found, rows, bool(features))

    def _sent(self, rows: Rows, angles: tuple[Floats, Floats]) -> PagedStep:
        """The step on the device. angles: of its rows."""
        layouts = self._plan.layouts(rows, self.ops.most_rows)
        step = PagedStep.of(rows, angles, layouts, self._plan).to(self.device, self._staging)
        if self._plan.plain:
            step = replace(step, plain=self.weights.step(rows))
        return step

    def _fetch(self, found: Result, rows: Rows, seen: bool) -> ModelOutput:
        """The results on the CPU. seen: with features."""
        known = rows.only_best | bool(self.config.logit_cap)
        best = np.where(known, found.best.cpu().numpy(), -1)
        logits = found.logits[:0] if rows.only_best.all() else found.logits
        features = _fetched(found.features) if seen else None
        return ModelOutput(_fetched(logits), features, best)

    def _run(self, step: PagedStep, kv: BlockStorage, features: tuple[int, ...]) -> Result:
        w, eps = self.weights, self.weights.alike.eps
        x_TH = self._start(step)
        taken: dict[int, Tensor] = {}
        first, *others = (w.layers[n] for n in self.layers)
        fresh_TH = first.norms["mixer"](x_TH)
        if first.streams and w.merge is not None:  # each begins as the embedding
            x_TH = x_TH.repeat(1, w.merge.streams.count)
        norms = [*(layer.norms["mixer"] for layer in others), w.norm]
        for n, place, next_norm in zip(self.layers, self._plan.layers, norms, strict=True):
            layer = w.layers[n]
            mix = partial(self._mix, mixer=layer.mixer, kv=kv, n=n, place=place, step=step)
            ffn = partial(self._ffn, ffn=layer.ffn, step=step)
            if layer.streams:
                x_TH = layer.connect(x_TH, "mixer", mix)
                x_TH = layer.whole_norm(layer.connect(x_TH, "ffn", ffn))
            else:
                own, last = layer.norms["ffn"].weight, next_norm.weight
                mixed_TH = layer.added("mixer", mix(fresh_TH))
                fresh_TH, x_TH = self.ops.add_rms_norm(mixed_TH, x_TH, own, eps)
                made_TH = layer.added("ffn", ffn(fresh_TH))
                fresh_TH, x_TH = self.ops.add_rms_norm(made_TH, x_TH, last, eps)
            if n in features:
                taken[n] = self._one_stream(x_TH.index_select(0, step.feature_rows), layer)
        if first.streams:
            fresh_TH = w.norm(self._one_stream(x_TH, first))
        last_MH = fresh_TH.index_select(0, step.outputs)
        logits_MV = self.ops.linear(last_MH, w.head)
        logits_MV = logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32))
        best = _first_best(logits_MV)
        seen = self._seen([taken[n] for n in features], fresh_TH, step)
        return Result(soft_cap(logits_MV, self.config.logit_cap), best, seen)

    def _start(self, step: PagedStep) -> Tensor:
        """Return the input of the first layer."""
        return self.weights.embed(step.tokens)

    def _seen(self, features: Sequence[Tensor], fresh_TH: Tensor, step: PagedStep) -> Tensor:
        """The features of a result. fresh_TH: the last norm's rows."""
        return torch.cat(list(features), -1) if features else fresh_TH[:0, :0]

    def _one_stream(self, x_TH: Tensor, layer: LayerModule) -> Tensor:
        """[T, H] of what a layer gave, which may be several residual streams."""
        return self.weights.one_stream(x_TH) if layer.streams else x_TH

    def _mix(
        self,
        x_TH: Tensor,
        mixer: MixerModule,
        kv: BlockStorage,
        n: int,
        place: int | None,
        step: PagedStep,
    ) -> Tensor:
        """[T, H] of normed rows. place: of the layer's window; None: a module of plain torch runs."""
        if place is None:
            assert step.plain is not None
            return mixer(x_TH, kv, n, step.plain)
        layout, front = step.layouts[place], self.weights.fronts[n]
        attended = partial(attend, self.ops, layout=layout, front=front)
        if isinstance(mixer, LatentModule):
            return self._mix_latent(x_TH, mixer, kv, n, attended, step)
        assert isinstance(mixer, GroupedModule)
        return self._mix_heads(x_TH, mixer, LayerKV(kv.k[n], kv.v[n]), attended, step)

    def _mix_latent(
        self,
        x_TH: Tensor,
        mixer: LatentModule,
        kv: BlockStorage,
        n: int,
        attended: Attended,
        step: PagedStep,
    ) -> Tensor:
        added = partial(mixer.convolved, kv=kv, n=n, step=step.plain)
        turned = partial(self.ops.rotate, cos_T1D=step.cos, sin_T1D=step.sin)
        q_THD, kept, _ = mixer.project(x_TH, added, turned)
        kv.k[n].index_copy_(0, step.slots.long(), kept)
        pair = LayerKV(*(side.unflatten(0, (-1, BLOCK)) for side in (kv.k[n], kv.v[n])))
        return mixer.output(attended(q_THD.to(x_TH.dtype), pair), added)

    def _mix_heads(
        self, x_TH: Tensor, mixer: GroupedModule, pair: LayerKV, attended: Attended, step: PagedStep
    ) -> Tensor:
        q_THD, *fresh, gates_THD = self._project(x_TH, mixer, step)
        k_TKD, v_TKD = map(self._widened, fresh)
        self.ops.store(k_TKD, v_TKD, pair, step.slots)
        seen_THD = attended(self._widened(q_THD), pair)[..., : q_THD.shape[-1]]
        if mixer.mixer.out_gate:
            gates_THD = sigmoid(gates_THD.to(wide(x_TH.dtype)))
            seen_THD = (seen_THD * gates_THD).to(x_TH.dtype)
        return self.ops.linear(seen_THD.reshape(len(x_TH), -1), mixer.out)

    def _project(
        self, x_TH: Tensor, w: GroupedModule, step: PagedStep
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys, values, and gates as queries where there are any."""
        c = w.mixer
        parts = c.heads, c.kv_heads, c.kv_heads, c.heads * c.out_gate
        mixed = self.ops.linear(x_TH, w.qkv).unflatten(1, (sum(parts), -1))
        sides = list(mixed.split(parts, 1))
        for i, norm in enumerate((w.query_norm, w.key_norm)):
            if norm is not None:
                sides[i] = norm(sides[i].contiguous())
        q_THD, k_TKD, v_TKD, gates_THD = sides
        if c.rope is not None:
            normed = w.query_norm is not None or w.key_norm is not None
            both = torch.cat((q_THD, k_TKD), 1) if normed else mixed[:, : c.heads + c.kv_heads]
            turned = self.ops.rotate(both.to(step.cos.dtype), step.cos, step.sin).to(x_TH.dtype)
            q_THD, k_TKD = turned.split((c.heads, c.kv_heads), 1)
        return q_THD, k_TKD, v_TKD, gates_THD

    def _widened(self, x_TND: Tensor) -> Tensor:
        """Filled up with zeros to the width of the cache; they add nothing to any product."""
        room = self.storage.width(x_TND.shape[-1]) - x_TND.shape[-1]
        return F.pad(x_TND, (0, room)) if room else x_TND

    def _ffn(self, x_TH: Tensor, ffn: FfnModule, step: PagedStep) -> Tensor:
        """[T, H] of normed rows."""
        if isinstance(ffn, MlpModule):
            return ffn(x_TH)
        assert isinstance(ffn, ExpertsModule)
        y_TH = ffn.shared_rows(x_TH)
        if not step.routed:
            return y_TH
        logits_TE = self.ops.route(x_TH, ffn.router.weight)
        if ffn.router.bias is not None:
            logits_TE = logits_TE + ffn.router.bias
        return self.ops.experts(x_TH, ffn.choose(logits_TE, step.groups), ffn, y_TH)


class MtpLayers(PagedDecoder):
    """An MTP layer alone, between its entry and the model's head. Its steps are never recorded."""

    def __init__(self, weights: Stacked, head: int) -> None:
        super().__init__(weights.of_mtp(head), (len(weights.config.layers) + head,))
        self._head = weights.mtp[head]

    @torch.inference_mode()
    def run(self, rows: Rows, kv: KVStorage) -> ModelOutput:
        """Rows with their inputs; the features are normed hidden states."""
        check_step(rows, kv, self.storage, (), ())
        assert isinstance(kv, BlockStorage)
        inputs = inputs_of(rows)
        with self.ops.active():
            step = self._sent(rows, self._rotary.at(rows))
            step = replace(step, inputs=inputs.to(self.device, self.dtype))
            return self._fetch(self._run(step, kv, ()), rows, True)

    def _start(self, step: PagedStep) -> Tensor:
        mtp = self._head
        assert step.inputs is not None
        return mtp.enter(mtp.embedding_norm(super()._start(step)), mtp.hidden_norm(step.inputs))

    def _seen(self, features: Sequence[Tensor], fresh_TH: Tensor, step: PagedStep) -> Tensor:
        return fresh_TH.index_select(0, step.feature_rows)


class PagedMtp(MtpDecoder):
    """`MtpModel` of a `PagedDecoder`."""

    def __init__(self, weights: Stacked) -> None:
        super().__init__(weights)
        self._layers = [MtpLayers(weights, head) for head in range(self.heads)]

    def states(self, features: Features) -> Tensor:
        with self._layers[0].ops.active():
            return _fetched(super().states(features))

    def forward(self, rows: Rows, kv: KVStorage, head: int = -1) -> ModelOutput:
        return self._layers[head].run(rows, kv)


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
