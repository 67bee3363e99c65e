"""A mixture of experts: routed ones, of which a token runs some, and a shared one that every token runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastslow.engine.model.ffn.dense import DenseMlp, MlpModule
from fastslow.engine.model.ffn.router import (
    ExpertChoice,
    GroupRouter,
    Router,
    choose,
    choose_best,
)
from fastslow.engine.model.ops import Dispatch, Linear, Ops, sigmoid, wide
from fastslow.engine.model.parts import WeightReader
from fastslow.engine.model.tensor_spec import ShardAxis, ShardRule, TensorSpec, linear
from fastslow.engine.types import Ints

OUTS, INS = ShardRule(ShardAxis.EXPERTS, 0), ShardRule(ShardAxis.EXPERTS, 1)
ONCE = ShardRule(ShardAxis.FIRST_OF_EXPERTS)


@dataclass(frozen=True, slots=True)
class RoutedExperts:
    """y = shared(x) + sum over the experts that run of weight * expert(x).

    expert: each routed one, alike. shared: None where there is none. shared_gate: what the shared one adds is multiplied
    by sigmoid(w . x)."""

    router: GroupRouter | Router
    experts: int
    expert: DenseMlp
    shared: DenseMlp | None = None
    shared_gate: bool = False

    def misfits(self) -> Iterator[str]:
        if self.shared_gate and self.shared is None:
            yield "a gate of the shared expert needs one: shared_expert_intermediate_size is missing"
        for mlp in (self.expert, self.shared):
            yield from mlp.misfits() if mlp is not None else ()
        yield from self.router.misfits(self.experts)

    def tensors(self, prefix: str, hidden: int) -> Iterator[TensorSpec]:
        own, r = f"{prefix}.mlp", self.router
        yield from linear(f"{own}.gate", self.experts, hidden, isinstance(r, Router) and r.bias)
        if isinstance(r, GroupRouter):
            yield TensorSpec(f"{own}.router_scale", (1, self.experts))
        else:
            if r.choice_bias:
                yield TensorSpec(f"{own}.gate.e_score_correction_bias", (self.experts,))
            if r.input_norm is not None:
                yield TensorSpec(f"{own}.gate.scale", (hidden,))
            if r.per_expert_scale:
                yield TensorSpec(f"{own}.gate.per_expert_scale", (self.experts,))
        if self.shared is not None:
            yield from self.shared.inside(f"{own}.shared_expert", hidden)
        if self.shared_gate:
            yield from linear(f"{own}.shared_expert_gate", 1, hidden, False)
        inner, bias = self.expert.width, self.expert.bias
        for e in range(self.experts):
            name = f"{own}.experts.{e}"
            for side in ("gate", "up"):
                yield from linear(f"{name}.{side}_proj", inner, hidden, bias, OUTS, expert=e)
            yield from linear(f"{name}.down_proj", hidden, inner, bias, INS, ONCE, e)

    def load(self, prefix: str, reader: WeightReader) -> ExpertsModule:
        own, sums, r = f"{prefix}.mlp", wide(reader.dtype), self.router
        names = [f"{own}.experts.{e}" for e in range(self.experts)]
        scale = bias = choice = gate = inputs = None
        if self.shared_gate:
            gate = reader.plain(f"{own}.shared_expert_gate.weight", dtype=sums)[0]
        if isinstance(r, GroupRouter):
            scale = reader.plain(f"{own}.router_scale", dtype=sums).flatten()
        else:
            bias = reader.plain(f"{own}.gate.bias", dtype=sums) if r.bias else None
            name = f"{own}.gate.e_score_correction_bias"
            choice = reader.plain(name, dtype=sums) if r.choice_bias else None
            if r.input_norm is not None:
                inputs = reader.plain(f"{own}.gate.scale", dtype=sums)
                inputs *= len(inputs) ** -0.5
            if r.per_expert_scale:
                scale = reader.plain(f"{own}.gate.per_expert_scale", dtype=sums)
        router = reader.ops.pack(reader.plain(f"{own}.gate.weight", dtype=sums))
        return ExpertsModule(
            self,
            reader.ops,
            Linear(router, bias),
            reader.experts(names, ("gate", "up"), self.expert.bias),
            reader.experts(names, ("down",), self.expert.bias),
            None if self.shared is None else self.shared.read(f"{own}.shared_expert", reader),
            scale,
            choice,
            gate,
            inputs,
        )


@dataclass(slots=True)
class ExpertsModule:
    """A mixture on plain torch. The router runs in float32 (float64 for a float64 model).

    gate_up, down: of all routed experts. router: [E, H], with a bias of its logits; choice_bias is added to what an
    expert is chosen by, and a MoGE's scale, or `per_expert_scale`, multiplies its weight; each [E]. shared_gate: [H].
    router_input: [H], what the router's normed input is multiplied with, H^-0.5 in it. All of these are float32 (float64
    for float64).

    held_groups, held_experts: what this rank holds of the groups of a MoGE, or of the experts, where others hold the
    rest; None = all."""

    ffn: RoutedExperts
    ops: Ops
    router: Linear
    gate_up: Any
    down: Any
    shared: MlpModule | None = None
    scale: Tensor | None = None
    choice_bias: Tensor | None = None
    shared_gate: Tensor | None = None
    router_input: Tensor | None = None
    held_groups: range | None = field(default=None, kw_only=True)
    held_experts: range | None = field(default=None, kw_only=True)

    def __call__(self, x_PH: Tensor, wanted: Ints, stream_PH: Tensor | None = None) -> Tensor:
        """[P, H] in the dtype of x. wanted: int64 [P], groups or experts to run per row. stream_PH: see `FfnModule`; what
        a router with an input norm reads."""
        y_PH, sums = self.shared_rows(x_PH), wide(x_PH.dtype)
        if not wanted.any():
            return y_PH
        read_PH, router = x_PH.to(sums), self.ffn.router
        if isinstance(router, Router) and (norm := router.input_norm) is not None:
            assert stream_PH is not None and self.router_input is not None
            read_PH = self.ops.rms_norm(stream_PH.to(sums), self.router_input, norm.eps)
        logits_PE = self.ops.linear(read_PH, *self.router)
        found = self.choose(logits_PE, torch.from_numpy(wanted).to(x_PH.device))
        numbers, weights = found.numbers.cpu().numpy(), found.weights
        if (held := self.held_groups) is not None:
            numbers = numbers[:, held.start : held.stop]
            weights = weights[:, held.start : held.stop]
        first, count = self._first_held(logits_PE.shape[1]), len(self.gate_up)
        runs = (numbers >= first) & (numbers < min(first + count, logits_PE.shape[1]))
        groups = runs.shape[1]
        entries = np.flatnonzero(runs)  # in [P * G], row by row
        if not len(entries):
            return y_PH
        own = numbers.ravel()[entries].astype(np.int64) - first
        dispatch, places = _dispatch(own, entries // groups, count, self.ops.rows, x_PH.device)
        act = self.ffn.expert.activation
        out_RH = self.ops.experts(x_PH, self.gate_up, self.down, act, dispatch)
        parts = torch.zeros(runs.size, x_PH.shape[1], dtype=sums, device=x_PH.device)
        picked = out_RH.index_select(0, places).to(sums)
        parts.index_copy_(0, torch.from_numpy(entries).to(x_PH.device), picked)
        parts_PGH = parts.view(-1, groups, x_PH.shape[1])
        parts_PGH *= weights[..., None]
        total = y_PH.to(sums)
        for g in range(groups):
            total = total + parts_PGH[:, g]
        return total.to(x_PH.dtype)

    def _first_held(self, experts: int) -> int:
        if self.held_groups is not None:
            return self.held_groups.start * (experts // self.ffn.router.chosen)
        return 0 if self.held_experts is None else self.held_experts.start

    def shared_rows(self, x_PH: Tensor) -> Tensor:
        """What the shared expert makes of rows; zeros where there is none."""
        y_PH = torch.zeros_like(x_PH) if self.shared is None else self.shared(x_PH)
        if (gate := self.shared_gate) is not None:
            y_PH = (y_PH * sigmoid((x_PH * gate).sum(-1, keepdim=True))).to(x_PH.dtype)
        return y_PH

    def choose(self, logits_PE: Tensor, wanted_P: Tensor) -> ExpertChoice:
        """The experts of rows. wanted: see `__call__`."""
        router = self.ffn.router
        if isinstance(router, GroupRouter):
            assert self.scale is not None
            return choose(logits_PE, self.scale, router.groups, wanted_P)
        found = choose_best(logits_PE, router, self.choice_bias, wanted_P)
        if self.scale is None:
            return found
        experts = found.numbers.clamp(max=logits_PE.shape[1] - 1).flatten()
        each = self.scale.index_select(0, experts).view(found.weights.shape)
        return ExpertChoice(found.numbers, found.weights * each)


def _dispatch(
    experts: Ints, rows: Ints, count: int, step: int, device: torch.device
) -> tuple[Dispatch, Tensor]:
    """(expert, row) entries by expert, each share padded to a multiple of `step` with row 0; where each went."""
    order = np.argsort(experts, kind="stable")
    sizes = np.bincount(experts, minlength=count)
    padded = -(-sizes // step) * step
    stops = np.cumsum(padded)
    starts = stops - padded
    ranks = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    places = np.empty(len(order), dtype=np.int64)
    places[order] = starts[experts[order]] + ranks
    sources = np.zeros(int(stops[-1]), dtype=np.int64)
    sources[places] = rows
    used = np.flatnonzero(sizes)
    runs = list(zip(used.tolist(), starts[used].tolist(), stops[used].tolist(), strict=True))
    return Dispatch(torch.from_numpy(sources).to(device), runs), torch.from_numpy(places).to(device)
