from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastslow.models.dense import Dense
from fastslow.models.recipe import TEMPERATURE, ExpertLayout


def clusters(size_TN: Tensor, count: int, rounds: int, seed: int) -> Tensor:
    """k-means of tokens by which neurons matter to them; centres [count, neurons]."""
    generator = torch.Generator().manual_seed(seed)
    points = size_TN / size_TN.norm(dim=1, keepdim=True).clamp_min(1e-9)
    start = torch.randperm(points.shape[0], generator=generator)[:count]
    centres: Tensor = points[start].clone()
    for _ in range(rounds):
        nearest = (points @ centres.T).argmax(1)
        one_hot = torch.zeros(points.shape[0], count).scatter_(1, nearest[:, None], 1.0)
        sums = one_hot.T @ points
        empty = one_hot.sum(0) == 0
        sums[empty] = points[torch.randperm(points.shape[0], generator=generator)[: empty.sum()]]
        centres = sums / sums.norm(dim=1, keepdim=True).clamp_min(1e-9)
    return centres


def choose_experts(energy_TN: Tensor, width: int, count: int, rounds: int, seed: int) -> Tensor:
    """Neuron positions [count, width] of one pool's experts, chosen to capture token energy.

    k-means gives the first experts; then tokens move to the expert that captures most of their
    energy and each expert takes the neurons of most energy for its tokens, a few times.
    """
    centres = clusters(energy_TN.sqrt(), count, rounds, seed)
    owner = (energy_TN.sqrt() @ centres.T).argmax(1)
    for _ in range(rounds):
        one_hot = torch.zeros(energy_TN.shape[0], count).scatter_(1, owner[:, None], 1.0)
        total = one_hot.T @ (energy_TN / energy_TN.sum(1, keepdim=True).clamp_min(1e-9))
        total += 1e-6 * energy_TN.mean(0)  # an expert without tokens takes the best neurons
        picks = total.topk(width, dim=1).indices
        member = torch.zeros(count, energy_TN.shape[1]).scatter_(1, picks, 1.0)
        owner = (energy_TN @ member.T).argmax(1)
    chosen: Tensor = picks.sort(dim=1).values
    return chosen


def fit_router(input_TH: Tensor, target_TE: Tensor, ridge: float) -> Tensor:
    """Ridge regression of the targets on the FFN's input, without intercept: [experts, hidden]."""
    x = input_TH.float()
    gram = x.T @ x
    gram.diagonal().add_(ridge * float(gram.diagonal().mean()))
    router: Tensor = torch.linalg.solve(gram, x.T @ target_TE).T.contiguous()
    return router


class Calibrator:
    """Lays out one layer after another while the dense model runs the calibration text once.

    Args:
        dense: the model to convert.
        groups, experts: routed groups, and experts of each.
        shared: neurons of the shared expert.
        width: neurons of one expert.
        rounds: rounds of k-means and of refinement.
        seed: of the first centres.
        progress: called after each layer, or None.
    """

    def __init__(
        self,
        dense: Dense,
        *,
        groups: int,
        experts: int,
        shared: int,
        width: int,
        rounds: int,
        seed: int,
        progress: Callable[[], None] | None,
    ) -> None:
        self.dense, self.groups, self.experts = dense, groups, experts
        self.shared, self.width, self.rounds, self.seed = shared, width, rounds, seed
        self.progress = progress
        self.layers: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []

    def __call__(self, layer: int, input_BTH: Tensor, inner_BTN: Tensor) -> None:
        norms = self.dense.weight(layer, "down").float().norm(dim=0)
        energy_TN = (inner_BTN.flatten(0, 1).float() * norms).square()
        x_TH = input_BTH.flatten(0, 1).float()
        rank = energy_TN.mean(0).argsort(descending=True)
        pool_GN = rank[self.shared :].view(-1, self.groups).T.contiguous()
        picks, targets = [], []
        for group, pool in enumerate(pool_GN):
            part = energy_TN[:, pool]
            pick = choose_experts(part, self.width, self.experts, self.rounds, self.seed + group)
            member = torch.zeros(self.experts, len(pool)).scatter_(1, pick, 1.0)
            picks.append(pick)
            targets.append((part @ member.T + 1e-12).log())
        router = fit_router(x_TH, routing_goal(torch.stack(targets, 1)).flatten(1), ridge=1e-3)
        score = x_TH @ router.bfloat16().float().T
        p = torch.softmax(score / TEMPERATURE, -1)
        p = torch.unflatten(p, -1, (self.groups, self.experts))
        scale = torch.full((self.groups * self.experts,), 1.0 / float(p.amax(-1).mean()))
        shared = rank[: self.shared].sort().values
        self.layers.append((shared, pool_GN, torch.stack(picks), router, scale))
        if self.progress is not None:
            self.progress()

    def layout(self) -> ExpertLayout:
        """The layout of all layers seen."""
        layout = ExpertLayout(*(torch.stack(parts) for parts in zip(*self.layers, strict=True)))
        layout.check(self.dense.config.intermediate_size)
        return layout


def routing_goal(log_energy_TGE: Tensor) -> Tensor:
    """What router scores should be: best expert of a group first, strong groups first.

    The spread between a group's experts is small beside that between groups, so each is scaled to
    unit deviation before they are added. What tokens and groups have in common is left out.
    """
    within = log_energy_TGE - log_energy_TGE.mean(-1, keepdim=True)
    between = log_energy_TGE.mean(-1, keepdim=True)
    between = between - between.mean(1, keepdim=True)
    between = between - between.mean(0)
    return within / within.std().clamp_min(1e-6) + between / between.std().clamp_min(1e-6)


def calibrate(
    dense: Dense,
    rows_RT: Tensor,
    *,
    groups: int = 8,
    experts: int = 8,
    shared: int,
    width: int,
    rounds: int = 8,
    seed: int = 0,
    progress: Callable[[], None] | None = None,
) -> ExpertLayout:
    """Ranks the neurons of every FFN, deals them to pools and clusters pools into experts.

    Memory: one layer's inner neurons for all tokens, about 20 * rows * tokens * inner bytes.

    Args:
        dense: the model to convert.
        rows_RT: int64 [rows, tokens], calibration text.
        groups, experts: routed groups, and experts of each.
        shared: neurons of the shared expert, those of largest mean (|h| * ||down column||)^2;
            the others are dealt to the pools in turn, in rank order.
        width: neurons of one expert, at most those of a pool.
        rounds: rounds of k-means and of refinement.
        seed: of the first centres.
        progress: called after each layer, or None.

    Returns:
        A layout whose router picks, in each group, the expert that captures most energy, and
        whose scales bring the mean weight to 1.
    """
    calibrator = Calibrator(
        dense,
        groups=groups,
        experts=experts,
        shared=shared,
        width=width,
        rounds=rounds,
        seed=seed,
        progress=progress,
    )
    dense.hidden(rows_RT, watch=calibrator)
    return calibrator.layout()
