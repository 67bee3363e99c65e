"""`fastslow plan`: what a model would do on cards that need not be in this machine."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal

from fastslow.engine.checked import Params
from fastslow.tools.cli.options import expand_options
from fastslow.tools.job_options import field

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from fastslow.tools.plan.search import PlanChoice
    from fastslow.tools.plan.step import Setting, Terms


class PlanOptions(Params):
    """A model, the cards, and what a request is like."""

    model: str = field(
        "openpangu-pro-moe-72b",
        "a known name, a checkpoint folder, a GGUF file, a config.json or a built-in name",
        names="MODEL --model",
    )
    device: Literal["800i-a2", "300i-duo", "h100"] | None = field(
        None, "the cards; default: 800i-a2, for a known name"
    )
    cards: int | None = field(
        None, "cards that share the model; default: the fewest that hold it", ge=1
    )
    sequence: int | None = field(
        None, "tokens of a request, prompt and answer; default: 2048 or the context", ge=1
    )
    latency_ms: float = field(100.0, "milliseconds per token, at most", ge=0.001)
    batch: int | None = field(None, "plan for this batch instead of a latency", ge=1)
    mode: Literal["deep", "fast"] = field("deep", "fast runs fewer experts, as that preset does")
    acceptance: float = field(
        0.7, "of a drafted token, below 1; or tokens per step of long drafts, from 1", ge=0
    )
    drafter: Literal["mtp", "free"] = field(
        "mtp", "what drafts: mtp (a layer and the head per token) or free (found in text)"
    )
    weights: Literal["w8a8", "bf16"] = field("w8a8", "format of the weights")
    kv: Literal["bf16", "int8"] = field("bf16", "format of keys and values")
    as_json: bool = field(False, "one JSON object", names="--json")


@expand_options
def plan(options: PlanOptions) -> None:
    """Plan batch, draft length and memory of a model on cards, not on this machine: a roofline, checked against
    published figures (docs/planner.md). Nothing is loaded.

    Examples:
      fastslow plan
      fastslow plan --cards 4 --sequence 2048 --latency-ms 100
      fastslow plan path/to/checkpoint --device h100 --batch 1 --acceptance 0.8
    """
    from fastslow.tools.cli.screen import console, quiet_log, show, write_json
    from fastslow.tools.plan import search
    from fastslow.tools.plan.device import DEVICES
    from fastslow.tools.plan.published import KNOWN, config_of
    from fastslow.tools.plan.step import CARDS, ForwardWork, Precision, Setting

    quiet_log()
    drafting = search.DraftCost.of(options.acceptance, options.drafter)
    config = config_of(options.model)
    sequence = options.sequence or min(2048, config.context)
    if sequence > config.context:
        raise ValueError(
            f"sequence={sequence} must be at most {config.context}, the model's context"
        )
    if (name := options.device or ("800i-a2" if options.model in KNOWN else None)) is None:
        raise ValueError(
            f"device is missing: one of {', '.join(DEVICES)}. A plan is for cards, not for this machine, which "
            "`fastslow bench` measures"
        )
    precision = Precision(options.weights, options.kv)
    device, work = DEVICES[name], ForwardWork.of(config)
    experts = work.fewer if options.mode == "fast" else work.chosen
    asked = replace(work, chosen=experts)
    setting = Setting(asked, device, options.cards or 1, precision, CARDS)
    if options.cards is None:
        setting = search.fewest_cards(setting, sequence, options.batch or 1)
    if options.batch is None:
        choices = search.choose_batches(setting, drafting, sequence, options.latency_ms / 1000)
    else:
        choices = search.choose_nodes(setting, drafting, sequence, options.batch)
    top, prefill = search.best(choices), setting.prefill(1, sequence)
    title = (
        f"{setting.cards} x {name}{', the fewest that hold it' if options.cards is None else ''}, by data sheets: "
        f"{options.model}, {options.weights}, KV {options.kv}, {sequence} tokens a request"
        + (f", mode {options.mode}: {experts} experts a token" if work.experts else "")
    )
    if options.as_json:
        write_json(_record(setting, choices, top, prefill, sequence))
        return
    console().print(title)
    show(_table(choices, top))
    console().print(
        f"prefill of one prompt: {1000 * prefill.seconds:.1f} ms, "
        f"{sequence / prefill.seconds / setting.cards:.0f} tokens/s per card, most of it {_part(prefill)}"
    )
    if work.request:
        console().print(
            f"running states: {work.request / 1e6:.1f} MB a request, {work.state / 1e6:.1f} MB a snapshot"
        )
    console().print(
        f"reckoned with {CARDS.memory:.0%} of the memory's bandwidth, {CARDS.compute:.0%} of the "
        f"products, {CARDS.link:.0%} of the links, {1e6 * CARDS.layer:.0f} us a layer; acceptance "
        f"{drafting.acceptance:.2f} a token ({options.drafter})"
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
    return f"{terms.binding.replace('kv', 'KV')} {share:.0%}"


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
        "state_per_request": setting.work.request,
        "state_per_snapshot": setting.work.state,
        "efficiency": asdict(setting.efficiency),
        "choices": [one(choice) for choice in choices],
        "best": one(top),
        "prefill": {**asdict(prefill), "seconds": prefill.seconds, "binding": prefill.binding},
    }
