"""A dense MLP and routed experts side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from fastslow.engine.model.ffn.dense import DenseMlp, MlpModule
from fastslow.engine.model.ffn.experts import ExpertsModule, RoutedExperts
from fastslow.engine.model.norms import NormModule, RmsNorm, norm_tensors
from fastslow.engine.model.parts import WeightReader
from fastslow.engine.model.tensor_spec import TensorSpec
from fastslow.engine.types import Ints


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

    def load(self, prefix: str, reader: WeightReader) -> ParallelModule:
        return ParallelModule(
            self.dense.load(prefix, reader),
            self.routed.load(prefix, reader),
            *(reader.norm(name, self.norm) for name in self.norms(prefix)),
        )


@dataclass(slots=True)
class ParallelModule:
    """Both on plain torch, and the norms in the order of `ParallelFfn.norms`."""

    dense: MlpModule
    routed: ExpertsModule
    dense_added: NormModule
    routed_before: NormModule
    routed_added: NormModule

    def __call__(self, x_PH: Tensor, wanted: Ints, stream_PH: Tensor | None = None) -> Tensor:
        assert stream_PH is not None
        experts = self.routed(self.routed_before(stream_PH), wanted, stream_PH)
        return self.dense_added(self.dense(x_PH)) + self.routed_added(experts)
