"""A dense checkpoint becomes a MoGE checkpoint: which neurons of its FFNs become shared, which experts the
others form, and the routers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fastslow.engine.backends.alike import AlikeLayers
from fastslow.engine.host.progress import Report, silent
from fastslow.engine.model.tensors import layer_names
from fastslow.llm import LLM
from fastslow.models.dense import Dense, dense_config
from fastslow.models.folder import require_vacant
from fastslow.models.moge import write_moge
from fastslow.models.recipe import TEMPERATURE, ExpertLayout, Recipe
from fastslow.tools.job_options import ConvertOptions
from fastslow.tools.kept import KeptWork, Tensors
from fastslow.tools.quantize.calibration import answered, prompts_of
from fastslow.tools.quantize.plain_layer import PlainLayer, plain, watched


def convert(
    dense_folder: Path, out: Path, options: ConvertOptions | None = None, report: Report = silent
) -> Path:
    """Turn a dense checkpoint (LlamaForCausalLM or PanguEmbeddedForCausalLM, with a tokenizer) into a MoGE
    checkpoint (PanguProMoEForCausalLM); `out` appears only when complete. Until then `KeptWork` has what is done.

    The FFN neurons that matter most become the shared expert; the others are dealt to one pool
    for each group, and each pool gives overlapping experts found by clustering tokens of the model's own
    answers. ValueError: the model is of another kind, or a number does not fit it.
    """
    require_vacant(out)
    options = options or ConvertOptions()
    inner = AlikeLayers.of(dense_config(dense_folder)).widest
    split = NeuronSplit.of(inner, options.groups, options.experts, options.shared, options.width)
    kept = KeptWork(out, dense_folder, options)
    texts = kept.lists("texts", lambda: calibration_texts(dense_folder, options, report))
    dense = Dense(dense_folder, torch.float32)

    def done(layers: float) -> None:
        report(0.3 + 0.7 * layers / len(dense.config.layers), "choosing experts")

    layout = calibrate(dense, texts, split, seed=options.seed, done=done, part=kept.part)
    made = write_moge(dense_folder, Recipe(layout, {}, {}), out, fast=options.fast)
    kept.drop()
    return made


def calibration_texts(
    folder: Path, options: ConvertOptions, report: Report = silent
) -> list[list[int]]:
    """Token ids of answers that the model gives to a few prompts of many kinds, or those of its folder."""
    texts: list[list[int]] = []
    with LLM(folder, remember=False, progress=False) as llm:
        for text in answered(llm, prompts_of(None, folder), seed=options.seed):
            texts.append(text)
            share = min(1.0, sum(map(len, texts)) / options.tokens)
            report(0.3 * share, "calibration text")
            if sum(map(len, texts)) >= options.tokens:
                break
    return texts


@dataclass(frozen=True)
class NeuronSplit:
    """Division of an FFN: groups * pool + shared = inner neurons, width of a pool's experts."""

    groups: int
    experts: int
    shared: int
    width: int

    @classmethod
    def of(
        cls, inner: int, groups: int, experts: int, shared: int | None, width: int | None
    ) -> NeuronSplit:
        """Checks the parts of an FFN of `inner` neurons, choosing those that are None: the shared expert
        takes 7/12 of them and an expert 4/5 of its pool, in multiples of 16 where the size allows.
        ValueError: a part is out of range, or the rest does not divide by `groups`."""
        if inner <= groups:
            raise ValueError(f"groups must be less than the {inner} FFN neurons, got {groups}")
        if shared is None:
            pool = inner * 5 // 12 // groups
            shared = inner - groups * max(1, pool // 16 * 16 if pool >= 16 else pool)
        if not 0 < shared < inner:
            raise ValueError(f"shared must be 1 to {inner - 1} of the FFN neurons, got {shared}")
        pool, left = divmod(inner - shared, groups)
        if left:
            raise ValueError(
                f"shared={shared} leaves {inner - shared} FFN neurons, which must divide by "
                f"groups={groups}"
            )
        if width is None:
            width = pool * 4 // 5
            width = max(1, width // 16 * 16 if width >= 16 else width)
        if not 1 <= width <= pool:
            raise ValueError(f"width must be 1 to the pool's {pool} neurons, got {width}")
        return cls(groups, experts, shared, width)


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
    """Neuron positions [count, width] of one pool's experts: k-means gives the first ones; then, a few times,
    tokens move to the expert that captures most of their energy, and experts take their tokens' neurons."""
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


def routing_goal(log_energy_TGE: Tensor) -> Tensor:
    """Return the scores that a router should give [T, G, E]: best expert of a group first, strong groups first. The
    spread in a group is small beside that between groups, so each is scaled to unit deviation."""
    within = log_energy_TGE - log_energy_TGE.mean(-1, keepdim=True)
    between = log_energy_TGE.mean(-1, keepdim=True)
    between = between - between.mean(1, keepdim=True)
    between = between - between.mean(0)
    return within / within.std().clamp_min(1e-6) + between / between.std().clamp_min(1e-6)


def calibrate(
    dense: Dense,
    texts: Sequence[Sequence[int]],
    split: NeuronSplit,
    *,
    rounds: int = 8,
    seed: int = 0,
    done: Callable[[float], None] = lambda layers: None,
    part: Callable[[str, Callable[[], Tensors]], Tensors] = lambda name, make: make(),
) -> ExpertLayout:
    """Ranks the neurons of every FFN, deals them to pools and clusters pools into experts, layer by
    layer while the dense model reads the texts once. Memory: one layer's inner neurons for all tokens.

    The shared expert has the neurons of largest mean (|h| * ||down column||)^2; the others are dealt
    to the pools in turn, in rank order. The router picks, in each group, the expert that captures most
    energy. rounds: of k-means and of refinement. done: called with how many layers are, and with each group of one.
    part: makes what is not kept.
    """
    config, layers = dense.config, []
    lengths = [len(text) for text in texts]
    x_NH = dense.embedding[torch.tensor([token for text in texts for token in text])].float()
    for n in range(len(config.layers)):
        prefix = f"model.layers.{n}."
        names = layer_names(config, n)
        tensors = {name.removeprefix(prefix): dense.tensors[name].float() for name in names}
        seen: dict[str, Tensor] = {}  # the input of each matrix
        layer = PlainLayer(config, n, tensors, lengths)
        x_NH = layer(x_NH, watched(plain(tensors), seen.__setitem__))
        norms = tensors["mlp.down_proj.weight"].norm(dim=0)
        energy_TN = (seen["mlp.down_proj"] * norms).square()
        said = lambda share, n=n: done(n + share)
        rows_TH = seen["mlp.gate_proj"]
        layers.append(
            part(f"layer-{n}", partial(_layer, rows_TH, energy_TN, split, rounds, seed, said))
        )
    layout = ExpertLayout(
        **{name: torch.stack([one[name] for one in layers]) for name in layers[0]}
    )
    layout.check(AlikeLayers.of(config).widest)
    return layout


def _layer(
    x_TH: Tensor,
    energy_TN: Tensor,
    split: NeuronSplit,
    rounds: int,
    seed: int,
    done: Callable[[float], None],
) -> Tensors:
    """A layer's shared neurons, pools, experts, router and scales."""
    groups, experts = split.groups, split.experts
    rank = energy_TN.mean(0).argsort(descending=True)
    pool_GN = rank[split.shared :].view(-1, groups).T.contiguous()
    picks, targets = [], []
    for group, pool in enumerate(pool_GN):
        part = energy_TN[:, pool]
        pick = choose_experts(part, split.width, experts, rounds, seed + group)
        member = torch.zeros(experts, len(pool)).scatter_(1, pick, 1.0)
        picks.append(pick)
        targets.append((part @ member.T + 1e-12).log())
        done((group + 1) / groups)
    router = fit_router(x_TH, routing_goal(torch.stack(targets, 1)).flatten(1), ridge=1e-3)
    p = torch.softmax(x_TH @ router.bfloat16().float().T / TEMPERATURE, -1)
    p = torch.unflatten(p, -1, (groups, experts))
    scale = torch.full((groups * experts,), 1.0 / float(p.amax(-1).mean()))
    shared = rank[: split.shared].sort().values
    chosen = {"shared": shared, "pools": pool_GN, "experts": torch.stack(picks)}
    return {**chosen, "router": router, "scale": scale}
