"""Muon: matrices move along the nearest orthogonal matrix of their momentum.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; arXiv 2502.16982 for
the size of its steps. torch's own always multiplies in bfloat16, which took nine tenths of an
update where a chip has no instructions for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
ROUNDS = 5
NEWTON = (3.4445, -4.7750, 2.0315)  # its author's quintic: steep at 0, near 1 elsewhere
STEP = 0.2  # root mean square of an update at rate 1, about that of AdamW


class Muon(torch.optim.Optimizer):
    """For parameters [n, m]; Nesterov's momentum, decoupled weight decay. lr: rate of AdamW that the steps' size is
    matched to. dtype: of the products."""

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, decay: float, dtype: torch.dtype
    ) -> None:
        super().__init__(parameters, {"lr": lr})
        self._decay = decay
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update the weights once; `closure` makes the gradients first."""
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    turned = orthogonal(self._ahead(p, p.grad), self._dtype)
                    p.mul_(1 - group["lr"] * self._decay)
                    # whatever the form, entries move alike
                    p.add_(turned, alpha=-group["lr"] * STEP * max(p.shape) ** 0.5)

    def _ahead(self, p: Tensor, grad: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        momentum: Tensor = state["momentum"].lerp_(grad, 1 - MOMENTUM)
        return grad.lerp(momentum, MOMENTUM)


def orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """About U V^T of a matrix U S V^T, [n, m], by Newton and Schulz: singular values between 0.5 and 1.3. dtype: of
    the products; matrix and result are float32."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(dtype)
    x = x / x.float().norm().clamp(min=1e-7).to(dtype)
    a, b, c = NEWTON
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).float()
