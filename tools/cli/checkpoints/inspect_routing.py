"""`fastslow inspect --routing`: how evenly a router loads experts, groups and ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from fastslow.engine.host.progress import bar
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.params import SamplingParams
from fastslow.llm import LLM
from fastslow.models.locate import resolve_model
from fastslow.tools.cli.screen import console, show
from fastslow.tools.prompts import read_prompts
from fastslow.tools.routing import (
    Loads,
    RouterWeights,
    load_decoder,
    measure,
    per_rank,
    router_scores,
)


def show_routing(
    model: str, file: Path, as_json: bool, *, ranks: int, prompts: int, answer: int, batch: int
) -> None:
    """Measure and print; the keywords are the fields of `RoutingOptions`.

    Raises:
        ValueError: a dense model, or ranks that do not divide its experts.
    """
    folder = resolve_model(model)
    gate = RouterWeights.of(ModelConfig.from_folder(folder))
    if gate.experts % ranks:
        raise ValueError(f"ranks={ranks} must divide the {gate.experts} experts")
    conversations = read_prompts(file, prompts)
    with LLM(folder, kv_memory="512MiB") as llm:
        outputs = llm.generate(conversations, SamplingParams(max_tokens=max(1, answer)))
    answers = [(o.prompt_token_ids, o.choices[0].token_ids) for o in outputs]
    # the last token of an answer is never run through the model
    texts = [(p + list(a[: max(0, answer - 1)]), len(p)) for p, a in answers]
    scores = router_scores(load_decoder(folder), bar(texts, "Reading router scores"))
    loads = measure(scores, gate, ranks, batch)
    if as_json:
        console().out(json.dumps(_record(loads, gate, ranks)), highlight=False)
        return
    console().print(
        f"{model}: {gate.experts} experts in {gate.groups} group(s), {gate.chosen} a token; "
        f"{ranks} ranks; {len(texts)} prompts"
    )
    table = Table("rows", "choice", "a step", "fullest", "all rows", "worst layer")
    for (kind, router), load in loads.items():
        whole = load.deviation(ranks)
        table.add_row(
            f"{load.rows} {kind}",
            router,
            f"{np.mean(load.deviations):.1%}",
            f"{np.mean(load.peaks):.2f} x",
            f"{whole.mean():.1%}",
            f"{whole.max():.1%} ({whole.argmax()})",
        )
    table.caption = (
        "standard deviation across ranks over their mean; fullest: the rank that a step "
        "waits for, over the mean"
    )
    show(table)


def _record(loads: Loads, gate: RouterWeights, ranks: int) -> dict[str, Any]:
    """For programs: counts by layer and expert, deviations as shares."""
    return {
        **gate._asdict(),
        "ranks": ranks,
        "loads": [
            {
                "rows": kind,
                "count": load.rows,
                "choice": router,
                "spread_of_a_step": float(np.mean(load.deviations)),
                "fullest_of_a_step": float(np.mean(load.peaks)),
                "spread_by_layer": load.deviation(ranks).tolist(),
                "tokens_per_rank": per_rank(load.experts, ranks).tolist(),
                "tokens_per_group": per_rank(load.experts, gate.groups).tolist(),
                "tokens_per_expert": load.experts.tolist(),
            }
            for (kind, router), load in loads.items()
        ],
    }
