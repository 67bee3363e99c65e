"""A dense model becomes a mixture: its MLPs' neurons are dealt to a shared expert and the groups.

Sparse upcycling (Komatsuzaki et al., arXiv 2212.05055): the experts of a group begin as copies of
each other and the router as nearly even, so the mixture computes at first what the dense model did.
"""

from __future__ import annotations

import torch
from torch import Tensor

from abacus.moge import Shape

Weights = dict[str, Tensor]
ROUTER = 0.1  # spread of the router's first logits: enough for copies to part


def places(weights: Weights, shape: Shape) -> list[tuple[Tensor, Tensor]]:
    """Of each layer, the neurons of the shared expert, and those of the groups [G, F]: the strongest
    ones are shared, the others dealt one by one."""
    found = []
    for n in range(shape.layers):
        gate, up, down = (weights[f"layers.{n}.mlp.{name}_proj.weight"] for name in _PARTS)
        order = (gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)).argsort(descending=True)
        dealt = order[shape.shared :].view(shape.width, shape.groups).T
        found.append((order[: shape.shared], dealt))
    return found


def split(weights: Weights, shape: Shape, where: list[tuple[Tensor, Tensor]]) -> Weights:
    """The weights, or anything that there is of each weight, in their new places; no router."""
    found = {name: tensor for name, tensor in weights.items() if ".mlp." not in name}
    for n, (shared, dealt) in enumerate(where):
        places = dealt.repeat_interleave(shape.experts, 0)  # [G * experts, F]
        for name in _PARTS:
            weight = weights[f"layers.{n}.mlp.{name}_proj.weight"]
            weight = weight.T if name == "down" else weight
            own, routed = weight[shared], weight[places]
            if name == "down":
                own, routed = own.T, routed.mT
            found[f"layers.{n}.mlp.shared_expert.{name}_proj.weight"] = own.clone()
            found[f"layers.{n}.mlp.{name}s"] = routed.clone()
    return found


def routers(shape: Shape, seed: int) -> Weights:
    """Nearly even routers, under which each chosen expert weighs about one."""
    generator = torch.Generator().manual_seed(seed)
    count = shape.groups * shape.experts
    found: Weights = {}
    for n in range(shape.layers):
        logits = torch.randn(count, shape.hidden, generator=generator)
        found[f"layers.{n}.mlp.gate"] = logits * ROUTER * shape.hidden**-0.5
        found[f"layers.{n}.mlp.router_scale"] = torch.full((count,), float(count))
    return found


_PARTS = ("gate", "up", "down")
