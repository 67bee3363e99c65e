"""The optimiser of a head's matrices, against torch's own."""

from __future__ import annotations

import pytest
import torch

from fastslow.tools.train_head.muon import Muon


@pytest.mark.parametrize("shape", [(40, 96), (96, 40)])
def test_in_bfloat16_it_does_what_torchs_own_does(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(shape, generator=generator)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    own = Muon([ours], 1e-2, 0.03, torch.bfloat16)
    reference = torch.optim.Muon([theirs], 1e-2, 0.03, adjust_lr_fn="match_rms_adamw")
    for _ in range(6):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        own.step()
        reference.step()
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert not torch.allclose(ours, start, atol=1e-2)


def test_a_stack_moves_as_its_matrices_do() -> None:
    generator = torch.Generator().manual_seed(3)
    stack = torch.nn.Parameter(torch.randn(3, 20, 12, generator=generator))
    apart = [torch.nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    both = Muon([stack], 1e-2, 0.1, torch.float32), Muon(apart, 1e-2, 0.1, torch.float32)
    for _ in range(3):
        stack.grad = torch.randn(stack.shape, generator=generator)
        for p, grad in zip(apart, stack.grad):
            p.grad = grad.clone()
        for optimizer in both:
            optimizer.step()
    assert torch.allclose(stack, torch.stack(list(apart)), atol=1e-6)
