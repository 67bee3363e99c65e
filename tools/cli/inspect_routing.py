"""`fastslow inspect --routing`: how evenly a router loads experts, groups and ranks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastslow.engine.host.progress import bar
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.params import SamplingParams
from fastslow.llm import LLM
from fastslow.models.locate import resolve_model
from fastslow.tools.cli.screen import console
from fastslow.tools.routing.balance import KINDS, ROUTERS, Balance, ExpertLoad, measure, per_rank
from fastslow.tools.routing.picture import NAMES, page
from fastslow.tools.routing.scores import RouterWeights, load_decoder, router_scores
from fastslow.tools.tune.prompts import read_prompts

if TYPE_CHECKING:
    from rich.table import Table

Texts = list[tuple[list[int], int]]  # tokens, and how many are the prompt's


@dataclass(frozen=True, slots=True)
class Asked:
    """What `inspect` was asked for.

    Attributes:
        prompts: JSON Lines, as `fastslow tune` reads them.
        limit: take so many of them.
        answer: tokens that each is answered with, greedily; 0 = prompts only.
        ranks: with as many neighbouring experts each.
        batch: answers that are decoded at a time.
        gate: "64x8" for random routers of 64 experts in 8 groups instead of the model's own.
        picture: an HTML file to write.
    """

    prompts: Path
    limit: int
    answer: int
    ranks: int
    batch: int
    gate: str | None
    picture: Path | None


def show_routing(model: str, asked: Asked, as_json: bool) -> None:
    """Measure and print.

    Raises:
        ValueError: a dense model, a gate that is not of the form 64x8, ranks that do not fit.
    """
    folder = resolve_model(model)
    own = RouterWeights.of(ModelConfig.from_folder(folder))
    random = None if asked.gate is None else _gate(asked.gate)
    gate = random or own
    if gate.experts % asked.ranks:
        raise ValueError(f"ranks={asked.ranks} must divide the {gate.experts} experts")
    texts = _texts(folder, asked)
    decoder = load_decoder(folder)
    scores = router_scores(decoder, _waited(texts, "Reading router scores"), random)
    balance = measure(scores, gate, asked.ranks, asked.batch)
    router = "its own routers" if random is None else f"random routers {asked.gate}"
    if asked.picture is not None:
        title = f"Load of experts: {model}, {router}, {len(texts)} prompts of {asked.prompts.name}"
        asked.picture.write_text(page(balance, title), "utf-8")
    if as_json:
        console().out(json.dumps(_record(balance)), highlight=False)
        return
    console().print(
        f"{model}, {router}: {gate.experts} experts in {gate.groups} group(s), {gate.chosen} a token; "
        f"{asked.ranks} ranks; {len(texts)} prompts"
    )
    for table in (_spreads(balance), _ranks(balance), _experts(balance)):
        console().print(table)
    if asked.picture is not None:
        console().print(f"wrote {asked.picture}")


def _texts(folder: Path, asked: Asked) -> Texts:
    """The prompts with their answers."""
    conversations = read_prompts(asked.prompts, asked.limit)
    with LLM(folder, kv_memory="512MiB") as llm:
        params = SamplingParams(max_tokens=max(1, asked.answer))
        outputs = llm.generate(conversations, params)
    texts = [(o.prompt_token_ids, o.choices[0].token_ids) for o in outputs]
    # the last token of an answer is never run through the model
    return [(p + list(a[: max(0, asked.answer - 1)]), len(p)) for p, a in texts]


def _waited(texts: Texts, words: str) -> Iterable[tuple[list[int], int]]:
    return bar(texts, words)


def _gate(words: str) -> RouterWeights:
    experts, _, groups = words.partition("x")
    if not (experts.isdecimal() and groups.isdecimal()) or not int(groups):
        raise ValueError(f"gate={words!r} must be experts x groups, as 64x8")
    if not int(experts) or int(experts) % int(groups):
        raise ValueError(f"gate={words!r}: {experts} experts do not split into {groups} groups")
    return RouterWeights(int(experts), int(groups), int(groups))


def _spreads(balance: Balance) -> Table:
    from rich.table import Table

    table = Table("rows", "choice", "a step", "fullest", "all rows", "worst layer")
    for kind, router, load in _loads(balance):
        whole = load.spread(balance.ranks)
        table.add_row(
            f"{balance.rows[kind]} {kind}",
            NAMES[router],
            f"{np.mean(load.spreads):.1%}",
            f"{np.mean(load.peaks):.2f} x",
            f"{whole.mean():.1%}",
            f"{whole.max():.1%} ({whole.argmax()})",
        )
    table.caption = (
        "standard deviation across ranks over their mean; fullest: the rank that a step "
        "waits for, over the mean"
    )
    return table


def _ranks(balance: Balance) -> Table:
    """Tokens per rank and per group, all layers together."""
    from rich.table import Table

    nouns = {"rank": balance.ranks}
    if balance.gate.groups not in (1, balance.ranks):
        nouns["group"] = balance.gate.groups
    table = Table("rows", "choice", *(f"tokens per {noun}" for noun in nouns))
    for kind, router, load in _loads(balance):
        total = load.experts.sum(0)
        cells = [" ".join(str(n) for n in per_rank(total, parts)) for parts in nouns.values()]
        table.add_row(kind, NAMES[router], *cells)
    return table


def _experts(balance: Balance) -> Table:
    """Of an even load, per layer and expert: quantiles, and experts that no row met."""
    from rich.table import Table

    table = Table("rows", "choice", "least", "1/4", "median", "3/4", "most", "unused")
    for kind, router, load in _loads(balance):
        even = load.experts / load.experts.mean(-1, keepdims=True)
        quantiles = np.quantile(even, (0, 0.25, 0.5, 0.75, 1))
        table.add_row(
            kind, NAMES[router], *(f"{q:.0%}" for q in quantiles), str((load.experts == 0).sum())
        )
    table.caption = "tokens per expert of a layer, over an even load"
    return table


def _loads(balance: Balance) -> list[tuple[str, str, ExpertLoad]]:
    kinds = [kind for kind in KINDS if kind in balance.rows]
    return [(kind, router, balance.loads[kind, router]) for kind in kinds for router in ROUTERS]


def _record(balance: Balance) -> dict[str, Any]:
    """For programs: counts by layer and expert, spreads as shares."""
    found = []
    for kind, router, load in _loads(balance):
        found.append(
            {
                "rows": kind,
                "count": balance.rows[kind],
                "choice": router,
                "spread_of_a_step": float(np.mean(load.spreads)),
                "fullest_of_a_step": float(np.mean(load.peaks)),
                "spread_by_layer": load.spread(balance.ranks).tolist(),
                "tokens_per_rank": per_rank(load.experts, balance.ranks).tolist(),
                "tokens_per_group": per_rank(load.experts, balance.gate.groups).tolist(),
                "tokens_per_expert": load.experts.tolist(),
            }
        )
    gate = balance.gate
    return {
        "experts": gate.experts,
        "groups": gate.groups,
        "chosen": gate.chosen,
        "ranks": balance.ranks,
        "loads": found,
    }
