from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Divergence(torch.autograd.Function):
    """Mean KL(teacher || student) in nats over the vocabulary, from final hidden states.

    The logits of all rows are never in memory: slices of rows are scored and their gradient with
    respect to the student's hidden states is taken at once, while the slice is in cache.
    """

    @staticmethod
    def forward(
        ctx: Any, student_TH: Tensor, teacher_TH: Tensor, head_VH: Tensor, rows: int = 240
    ) -> Tensor:
        total = torch.zeros(())
        grads = []
        scale = 1.0 / student_TH.shape[0]
        for ours, theirs in zip(
            torch.split(student_TH, rows), torch.split(teacher_TH, rows), strict=True
        ):
            log_p = torch.log_softmax((theirs @ head_VH.T).float(), -1)
            log_q = torch.log_softmax((ours @ head_VH.T).float(), -1)
            p = log_p.exp()
            total += (p * (log_p - log_q)).sum()
            grads.append(log_q.exp_().sub_(p).mul_(scale).to(head_VH.dtype) @ head_VH)
        ctx.save_for_backward(torch.cat(grads))
        return total * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None, None


@torch.no_grad()
def cross_entropy(hidden_BTH: Tensor, head_VH: Tensor, tokens_BT: Tensor) -> Tensor:
    """Nats of each next token, float32 [B, T - 1]."""
    nats = []
    for row, tokens in zip(hidden_BTH, tokens_BT, strict=True):
        logits = (row[:-1] @ head_VH.T).float()
        nats.append(torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none"))
    return torch.stack(nats)
