"""The head on whole texts, fed with its own outputs, as it will be when it drafts.

EAGLE-3, arXiv 2503.01840 ("training-time test"). Step 1 reads the target's features at every row. Step k reads what
step k-1 put out one row before, and attends to the true rows up to k-1 back and to the rows of steps 2..k between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastslow.draft.head.layer import HeadLayer, rotation
from fastslow.tools.train_head.batches import Batch, Before


def unroll(
    layer: HeadLayer, batch: Batch, embed: Callable[[Tensor], Tensor], steps: int
) -> Iterator[Tensor]:
    """The head's hidden states of step 1, 2, ..., each [B, T, H].

    Row t of any step guesses what follows the token after row t; the first k-1 rows of step k mean nothing. The rows of
    prompts are seen by every step. embed: float32 [..., H] of token ids.
    """
    before = batch.before
    T, P = batch.features.shape[1], before.features.shape[1]
    cos, sin = rotation(layer.config, torch.arange(T))
    embedded, hidden = embed(batch.after), layer.fuse(batch.features.float())
    chain: list[tuple[Tensor, Tensor]] = []  # keys and values of each step
    visible = torch.cat((before.visible, batch.visible), 1)
    distance = torch.arange(P, P + T)[:, None] - torch.arange(P + T)
    alone = F.pad(torch.eye(T, dtype=torch.bool), (P, 0))
    for step in range(steps):
        x = layer.input(embedded, hidden)
        q, k, v = layer.project(x, cos, sin)
        if not step and P:
            seen = _seen(layer, before, embed(before.after))
            k, v = (torch.cat(pair, 1) for pair in zip(seen, (k, v)))
        chain.append((k, v))
        near = (distance >= step) & (distance < layer.config.window)
        # A row that may see nothing, such as padding, looks at itself: no 0 / 0.
        mask = near & visible[:, None, :]
        mask |= alone & ~mask.any(-1, keepdim=True)
        hidden = layer.output(x, _attend(q, chain, mask, step))
        yield hidden
        hidden = F.pad(hidden, (0, 0, 1, 0))[:, :-1]


def _seen(layer: HeadLayer, before: Before, embedded: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [B, P, kv_heads, D] of prompts. embedded: [B, P, H] of the tokens after their rows."""
    x = layer.input(embedded, layer.fuse(before.features.float()))
    _, k, v = layer.project(x, *rotation(layer.config, before.places))
    return k, v


def _attend(q: Tensor, chain: list[tuple[Tensor, Tensor]], mask: Tensor, step: int) -> Tensor:
    """[B, T, heads * D]: keys of step 1 by the mask, of later steps one place each."""
    ratio = q.shape[2] // chain[0][0].shape[2]
    wide = [[x.repeat_interleave(ratio, 2).transpose(1, 2) for x in pair] for pair in chain]
    own = [_back(x, step - i) for i, pair in enumerate(wide) if i for x in pair]
    (k, v), *_ = wide
    out = attend(q.transpose(1, 2), k, v, mask[:, None], own)
    return out.transpose(1, 2).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, own: Sequence[Tensor]) -> Tensor:
    """Attention [B, heads, T, D] of each row to the keys that a mask shows and to some keys of its own. q [B, heads, T,
    D]; k, v [B, heads, S, D]; mask bool [B, 1, T, S]; own: k1, v1, k2, v2, ... as q."""
    scale = q.shape[-1] ** -0.5
    shown = (q @ k.mT * scale).masked_fill(~mask, -torch.inf)
    alone = [(q * key).sum(-1, keepdim=True) * scale for key in own[::2]]
    shares = torch.cat((shown, *alone), -1).softmax(-1)
    out = shares[..., : k.shape[2]] @ v
    for n, value in enumerate(own[1::2], k.shape[2]):
        out = out + shares[..., n, None] * value
    return out


def _back(x: Tensor, places: int) -> Tensor:
    """Row t of [B, heads, T, D] holds what row t - places held."""
    return F.pad(x, (0, 0, places, 0))[:, :, : x.shape[2]]
