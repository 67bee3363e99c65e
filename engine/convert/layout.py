from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Which neurons of each dense FFN the shared expert and the routed experts take.

    shared: int64 [layers, shared], ascending neuron numbers of the dense FFN.
    pools: int64 [layers, groups, pool], the neurons that only a group's experts may take.
    experts: int64 [layers, groups, experts, width], positions in the group's pool, ascending.
    router: float32 [layers, groups * experts, hidden], before division by TEMPERATURE.
    scale: float32 [layers, groups * experts].
    """

    shared: Tensor
    pools: Tensor
    experts: Tensor
    router: Tensor
    scale: Tensor

    def order(self, layer: int) -> Tensor:
        """The dense FFN's neurons, shared first and then pool by pool."""
        return torch.cat((self.shared[layer], self.pools[layer].flatten()))

    def member(self, layer: int) -> Tensor:
        """float32 [groups, experts, pool]: 1.0 where a pool neuron belongs to an expert."""
        groups, experts, _ = self.experts[layer].shape
        table = torch.zeros(groups, experts, self.pools.shape[-1])
        return table.scatter_(-1, self.experts[layer], 1.0)

    def check(self, inner: int) -> None:
        """ValueError unless shared and pools partition the `inner` neurons of every layer."""
        groups, experts, width = self.experts.shape[1:]
        for layer in range(self.shared.shape[0]):
            if not torch.equal(self.order(layer).sort().values, torch.arange(inner)):
                raise ValueError(
                    f"layer {layer}: shared expert and pools must use each of the {inner} "
                    "neurons once"
                )
        pool = self.pools.shape[-1]
        if int(self.experts.min()) < 0 or int(self.experts.max()) >= pool:
            raise ValueError(f"expert neuron positions must be in 0..{pool - 1}")
        if width > 1 and bool((self.experts.diff(dim=-1) <= 0).any()):
            raise ValueError("expert neuron positions must be ascending, without repeats")
        if self.router.shape[1] != groups * experts:
            raise ValueError(
                f"router must have {groups * experts} rows, got {self.router.shape[1]}"
            )
