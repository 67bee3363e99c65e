"""`fastslow plan`: what a model would do on cards that need not be in this machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastslow.tools.cli.options import check_writable, expand_options, shown_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from fastslow.tools.plan.search import PlanChoice
    from fastslow.tools.plan.step import Setting, Terms

NAMES = {"weights": "weights", "kv": "KV", "compute": "compute", "links": "links", "fixed": "fixed"}


@expand_options
def plan(
    model: Annotated[
        str,
        typer.Option(
            help="A name as openpangu-pro-moe-72b, a folder, a GGUF file, or a config.json."
        ),
    ] = "openpangu-pro-moe-72b",
    device: Annotated[
        str, typer.Option(help="800i-a2, 300i-duo, h100, or this-cpu (probed).")
    ] = "800i-a2",
    cards: Annotated[
        int | None,
        shown_option("Cards that share the model; default: the fewest that hold it.", min=1),
    ] = None,
    sequence: Annotated[
        int | None,
        shown_option("Tokens of a request, prompt and answer; default 2048 or its context.", min=1),
    ] = None,
    latency_ms: Annotated[
        float, shown_option("Milliseconds per token, at most.", min=0.001)
    ] = 100.0,
    batch: Annotated[
        int | None, shown_option("Plan for this batch instead of a latency.", min=1)
    ] = None,
    acceptance: Annotated[
        float,
        typer.Option(
            help="Of a drafted token, below 1; or tokens per step of long drafts, from 1."
        ),
    ] = 0.7,
    drafter: Annotated[
        str, typer.Option(help="mtp: a layer and the head per drafted token; free: found in text.")
    ] = "mtp",
    weights: Annotated[
        str,
        typer.Option(
            help="w8a8, bf16, float32, int8, int4, or own: a GGUF file's numbers. auto: own; "
            "of other models w8a8, on this-cpu bf16."
        ),
    ] = "auto",
    kv: Annotated[str, typer.Option(help="Keys and values: bf16, int8, float32.")] = "bf16",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    costs: Annotated[
        Path | None,
        typer.Option(
            help="JSON file for the steps of a replica: `fastslow simulate run` reads it."
        ),
    ] = None,
) -> None:
    """Plan batch, draft length and memory of a model on a device: a roofline, checked against
    published figures (docs/planner.md). Nothing is loaded.

    Examples:
      fastslow plan
      fastslow plan --cards 4 --sequence 2048 --latency-ms 100
      fastslow plan --cards 4 --costs costs.json
      fastslow plan --model path/to/checkpoint --device this-cpu --batch 1 --acceptance 0.8
    """
    if costs is not None:
        check_writable(costs)
    from fastslow.engine.host.gguf_file import is_gguf
    from fastslow.tools.cli.screen import console, quiet_log, show
    from fastslow.tools.plan.device import THIS_CPU, find_device
    from fastslow.tools.plan.published import OWN, config_of, precision_of
    from fastslow.tools.plan.search import (
        DraftCost,
        best,
        choose_batches,
        choose_nodes,
        fewest_cards,
    )
    from fastslow.tools.plan.step import CARDS, HOST, ForwardWork, Setting

    quiet_log()
    usual = OWN if is_gguf(Path(model)) else "bf16" if device == THIS_CPU else "w8a8"
    spelled = usual if weights == "auto" else weights
    precision = precision_of(model, spelled, kv)
    drafting = DraftCost.of(acceptance, drafter)
    config = config_of(model)
    sequence = min(2048, config.context) if sequence is None else sequence
    if sequence > config.context:
        raise ValueError(
            f"sequence={sequence} must be at most {config.context}, the model's context"
        )
    efficiency = HOST if device == THIS_CPU else CARDS
    work = ForwardWork.of(config)
    setting = Setting(work, find_device(device), cards or 1, precision, efficiency)
    setting.device.link(setting.cards)
    if cards is None:
        setting = fewest_cards(setting, sequence, batch or 1)
    if batch is None:
        choices = choose_batches(setting, drafting, sequence, latency_ms / 1000)
    else:
        choices = choose_nodes(setting, drafting, sequence, batch)
    prefill = setting.prefill(1, sequence)
    on = f"{setting.cards} x {device}" + (", the fewest that hold it" if cards is None else "")
    bits = f" ({8 * precision.weight:.1f} bits)" if spelled == OWN else ""
    title = f"{model}, {spelled}{bits}, KV {kv}, {sequence} tokens a request, on {on}"
    if costs is not None:
        from fastslow.tools.plan.replica_costs import planned_costs
        from fastslow.tools.simulate.costs import write_costs

        write_costs(costs, planned_costs(setting, f"planned: {title}"))
    if as_json:
        record = _record(setting, choices, best(choices), prefill, sequence)
        console().out(json.dumps(record), highlight=False)
        return
    console().print(title)
    show(_table(choices, best(choices)))
    console().print(
        f"prefill of one prompt: {1000 * prefill.seconds:.1f} ms, "
        f"{sequence / prefill.seconds / setting.cards:.0f} tokens/s per card, most of it {_part(prefill)}"
    )
    e = efficiency
    console().print(
        f"reckoned with {e.memory:.0%} of the memory's bandwidth, {e.compute:.0%} of the products, "
        f"{e.link:.0%} of the links, {1e6 * e.layer:.0f} us a layer; acceptance "
        f"{drafting.acceptance:.2f} a token ({drafter})"
    )


def _table(choices: Sequence[PlanChoice], top: PlanChoice) -> Table:
    from rich.table import Table

    table = Table("draft", "batch", "tok/step", "ms/step", "ms/tok", "tok/s", "GB", "most of it")
    table.caption = "tokens/s and GB are of each card; * the best; m: the batch is as memory allows"
    for choice in choices:
        table.add_row(
            f"{choice.nodes}{' *' if choice is top else ''}",
            f"{choice.batch}{' m' if choice.bound == 'memory' else ''}",
            f"{choice.tokens:.2f}",
            f"{1000 * choice.terms.seconds:.1f}",
            f"{1000 * choice.latency:.1f}",
            f"{choice.rate:.1f}",
            f"{choice.memory / 1e9:.1f}",
            _part(choice.terms),
        )
    return table


def _part(terms: Terms) -> str:
    share = getattr(terms, terms.binding) / terms.seconds
    return f"{NAMES[terms.binding]} {share:.0%}"


def _record(
    setting: Setting, choices: Sequence[PlanChoice], top: PlanChoice, prefill: Terms, sequence: int
) -> dict[str, Any]:
    """For programs: seconds, bytes, tokens per second and card."""

    def one(choice: PlanChoice) -> dict[str, Any]:
        return {
            **asdict(choice),
            "seconds_per_step": choice.terms.seconds,
            "seconds_per_token": choice.latency,
            "tokens_per_second_per_card": choice.rate,
            "binding": choice.terms.binding,
        }

    return {
        "device": asdict(setting.device),
        "cards": setting.cards,
        "sequence": sequence,
        "efficiency": asdict(setting.efficiency),
        "choices": [one(choice) for choice in choices],
        "best": one(top),
        "prefill": {**asdict(prefill), "seconds": prefill.seconds, "binding": prefill.binding},
    }
