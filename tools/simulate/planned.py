"""Step costs of cards that need not be there, from the planner."""

from __future__ import annotations

from dataclasses import replace

from fastslow.tools.plan.device import find_device
from fastslow.tools.plan.published import config_of, precision_of
from fastslow.tools.plan.search import USABLE, DraftCost
from fastslow.tools.plan.step import CARDS, HOST, Efficiency, ForwardWork, Setting
from fastslow.tools.simulate.costs import ModeSteps, ReplicaCosts

ROWS = tuple(sorted({1, 8192} | {n << k for n in (2, 3) for k in range(9)} | {1024, 2048, 4096}))
FAR = 1024  # tokens of context, to see what one takes
FAST_SHARE = 4  # "fast" runs this part of the experts that a token has, as the built-in modes do
PAGE = 16


def planned_costs(
    model: str,
    device: str,
    cards: int,
    *,
    weights: str = "w8a8",
    kv: str = "bf16",
    max_running: int = 256,
    prompt_rows: int = 2048,
    nodes: int = 0,
    acceptance: float = 0.7,
    drafter: str = "mtp",
) -> ReplicaCosts:
    """A replica of some cards, with the modes "fast" and "deep".

    Args:
        model, device, cards, weights, kv: as `fastslow plan` has them.
        max_running, prompt_rows: of the engine.
        nodes: tokens drafted per request and step.
        acceptance, drafter: as `fastslow plan` has them.

    Raises:
        ValueError: see `fastslow plan`; the weights do not fit.
    """
    efficiency: Efficiency = HOST if device == "this-cpu" else CARDS
    work = ForwardWork.of(config_of(model))
    precision = precision_of(model, weights, kv)
    setting = Setting(work, find_device(device), cards, precision, efficiency)
    setting.device.link(cards)
    drafting = DraftCost.of(acceptance, drafter)
    room = cards * (setting.device.memory * USABLE - setting.memory(0, 0))
    pages = int(room / (work.kv * precision.kv * PAGE))
    if pages < 1:
        raise ValueError(
            f"cards={cards}: {model} in {weights} does not fit into {cards} x {device}; "
            "`fastslow plan` tells how many it needs"
        )
    few = max(1, work.chosen // FAST_SHARE) if work.experts else work.chosen
    each = {"fast": setting.of(replace(work, chosen=few)), "deep": setting}
    far, none = setting.decode(1, 1, FAR), setting.decode(1, 1, 0)
    attention = (far.compute - none.compute) / FAR
    return ReplicaCosts(
        modes={name: _mode(one, drafting, nodes, attention) for name, one in each.items()},
        pages=pages,
        page_tokens=PAGE,
        max_running=max_running,
        prompt_rows=prompt_rows,
        context_seconds=(far.seconds - none.seconds) / FAR,
        attention_seconds=attention,
        source=f"planned: {model}, {weights}, KV {kv}, {cards} x {device}"
        + (f", {nodes} drafted by {drafter}, acceptance {drafting.acceptance:g}" if nodes else ""),
    )


def _mode(setting: Setting, drafting: DraftCost, nodes: int, attention: float) -> ModeSteps:
    """The curves of one mode, without what depends on the context."""
    decode, prompts = [], []
    for rows in ROWS:
        requests = max(1, round(rows / (nodes + 1)))
        # drafts are made one after the other, before the step
        alone = setting.decode(requests, nodes + 1, 0).seconds
        drafts = drafting.step(setting, requests, nodes, 0).seconds - alone
        decode.append(setting.decode(rows, 1, 0).seconds + drafts)
        terms = setting.prefill(1, rows)
        prompts.append(terms.seconds - (rows * rows / 2 * attention if terms.compute else 0.0))
    return ModeSteps(
        rows=ROWS,
        seconds=tuple(decode),
        prompt_seconds=tuple(prompts),
        tokens_per_step=drafting.tokens(nodes),
        rows_per_step=nodes + 1.0,
    )
