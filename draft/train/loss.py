"""How far a head's guesses lie from the target's law, without ever holding its logits whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 512  # rows at once: a [rows, D] block stays small


class Guess(torch.autograd.Function):
    """Cross entropy of the head's law with the target's, over the draft vocabulary.

    `apply(hidden [N, H], law [N, D], head [D, H], weight [N])` gives the weighted sum, f32 [], and
    the guesses, int64 [N], indices in the draft vocabulary. The target's mass outside the draft
    vocabulary counts for nothing, so a row that mostly lies there hardly counts. The gradient of
    `hidden` is made on the way; the head's rows are the target's own and stay as they are.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, law_ND: Tensor, head_DH: Tensor, weight_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        total = hidden_NH.new_zeros((), dtype=torch.float32)
        grad_NH = torch.empty_like(hidden_NH)
        guesses = []
        for rows in torch.split(torch.arange(len(hidden_NH)), CHUNK):
            at = slice(int(rows[0]), int(rows[-1]) + 1)
            log_q = torch.log_softmax((hidden_NH[at].to(head_DH.dtype) @ head_DH.T).float(), -1)
            p, weight = law_ND[at].float(), weight_N[at, None]
            guesses.append(log_q.argmax(-1))
            total -= (weight * p * log_q).sum()
            slope = (log_q.exp() * p.sum(-1, keepdim=True) - p) * weight
            grad_NH[at] = (slope.to(head_DH.dtype) @ head_DH).to(grad_NH.dtype)
        ctx.save_for_backward(grad_NH)
        found = torch.cat(guesses)
        ctx.mark_non_differentiable(found)
        return total, found

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None, None, None]:
        (grad_NH,) = ctx.saved_tensors
        return grad * grad_NH, None, None, None
