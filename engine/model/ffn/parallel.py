"""A dense MLP and routed experts side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from fastslow.engine.model.ffn.dense import DenseMlp, MlpModule, MlpWeights
from fastslow.engine.model.ffn.experts import ExpertsModule, MixtureWeights, RoutedExperts
from fastslow.engine.model.norms import NormWeights, RmsNorm, norm_tensors, normed
from fastslow.engine.model.ops import ExpertMatrices, Linear, Ops
from fastslow.engine.model.parts import WeightReader
from fastslow.engine.model.tensor_spec import TensorSpec
from fastslow.engine.types import Ints

M = TypeVar("M")
E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class ParallelFfn:
    """norm_1(dense(x)) + norm_2(routed(pre_2(h))): h are rows of the residual stream, which the router reads, too; x the
    same after the layer's norm before its ffn. What comes of it goes through the layer's norm after its ffn.

    norm: of `post_feedforward_layernorm_1`, `pre_feedforward_layernorm_2`, `post_feedforward_layernorm_2`."""

    dense: DenseMlp
    routed: RoutedExperts
    norm: RmsNorm

    def misfits(self) -> Iterator[str]:
        yield from self.dense.misfits()
        yield from self.routed.misfits()

    def tensors(self, prefix: str, hidden: int) -> Iterator[TensorSpec]:
        yield from self.dense.tensors(prefix, hidden)
        yield from self.routed.tensors(prefix, hidden)
        for name in self.norms(prefix):
            yield from norm_tensors(name, self.norm, hidden)

    def norms(self, prefix: str) -> list[str]:
        """Names of the norms of what the MLP adds, of what the experts read, and of what they add."""
        ends = "post_feedforward_layernorm_1", "pre_feedforward_layernorm_2"
        return [f"{prefix}.{end}" for end in (*ends, "post_feedforward_layernorm_2")]

    def load(self, prefix: str, reader: WeightReader[M, E]) -> ParallelWeights[M, E]:
        return ParallelWeights(
            self.dense.load(prefix, reader),
            self.routed.load(prefix, reader),
            *(reader.norm(name, self.norm) for name in self.norms(prefix)),
        )

    def module(self, weights: ParallelWeights[Linear, ExpertMatrices], ops: Ops) -> ParallelModule:
        dense = self.dense.module(weights.dense, ops)
        return ParallelModule(self, weights, ops, dense, self.routed.module(weights.routed, ops))


@dataclass(slots=True)
class ParallelWeights(Generic[M, E]):
    """Weights of both, and of the norms [H] in the order of `ParallelFfn.norms`."""

    dense: MlpWeights[M]
    routed: MixtureWeights[M, E]
    dense_added: NormWeights
    routed_before: NormWeights
    routed_added: NormWeights


@dataclass(slots=True)
class ParallelModule:
    """Both on plain torch."""

    ffn: ParallelFfn
    weights: ParallelWeights[Linear, ExpertMatrices]
    ops: Ops
    dense: MlpModule
    routed: ExpertsModule

    def __call__(self, x_PH: Tensor, wanted: Ints, stream_PH: Tensor | None = None) -> Tensor:
        assert stream_PH is not None
        w, kind = self.weights, self.ffn.norm
        inner = normed(self.ops, kind, w.routed_before, stream_PH)
        experts = self.routed(inner, wanted, stream_PH)
        added = normed(self.ops, kind, w.dense_added, self.dense(x_PH))
        return added + normed(self.ops, kind, w.routed_added, experts)
