"""`fastslow inspect`: what a checkpoint is, from its small files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from fastslow.engine.cli.facts import Facts

ROUTING = "Routing"


def inspect(
    model: Annotated[str, typer.Argument(help="Checkpoint folder or built-in name.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    routing: Annotated[
        Path | None,
        typer.Option(
            help="Prompts, JSON Lines: measure tokens per expert, group and rank.",
            rich_help_panel=ROUTING,
        ),
    ] = None,
    ranks: Annotated[
        int, typer.Option(min=1, help="Ranks that share the experts.", rich_help_panel=ROUTING)
    ] = 8,
    prompts: Annotated[
        int, typer.Option(min=1, help="Take so many prompts.", rich_help_panel=ROUTING)
    ] = 32,
    answer: Annotated[
        int, typer.Option(min=0, help="Tokens to answer each with.", rich_help_panel=ROUTING)
    ] = 64,
    batch: Annotated[
        int, typer.Option(min=1, help="Answers decoded in a step.", rich_help_panel=ROUTING)
    ] = 16,
    gate: Annotated[
        str | None,
        typer.Option(
            help="Experts x groups, as 64x8: random routers over the same inputs instead.",
            rich_help_panel=ROUTING,
        ),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="HTML file to write.", rich_help_panel=ROUTING)
    ] = None,
    parallel: Annotated[
        str | None, typer.Option(help="Ranks that would share it, such as ep=8,tp=1,dp=1.")
    ] = None,
) -> None:
    """Show a checkpoint: parameters, memory, context, tokenizer and modes. Reads no weights.

    With --routing it runs prompts, and shows how evenly the routers load experts, groups and ranks,
    against a choice of the best experts without groups on the same scores.

    Examples:
      fastslow inspect path/to/checkpoint
      fastslow inspect smollm2-moge --json
      fastslow inspect smollm2-moge --routing prompts.jsonl --picture balance.html
      fastslow inspect path/to/checkpoint --parallel ep=8
    """
    from fastslow.engine.cli.facts import Facts
    from fastslow.engine.cli.screen import console, quiet_log
    from fastslow.engine.cli.shares import plan_of, shares_record, shares_table
    from fastslow.engine.locate import resolve_model

    quiet_log()
    if routing is not None:
        from fastslow.engine.cli.routing import Asked, show_routing

        asked = Asked(routing, prompts, answer, ranks, batch, gate, picture)
        show_routing(model, asked, as_json)
        return
    facts = Facts.of(resolve_model(model))
    plan = None if parallel is None else plan_of(facts.config, parallel)
    if as_json:
        record = facts.record() | ({} if plan is None else {"parallel": shares_record(plan)})
        console().out(json.dumps(record, ensure_ascii=False), highlight=False)
        return
    for table in (_shape(facts), _memory(facts), _modes(facts)):
        console().print(table)
    if plan is not None:
        console().print(shares_table(plan))


def _shape(facts: Facts) -> Table:
    from rich.table import Table

    from fastslow.engine.cli.facts import billions

    table = Table.grid(padding=(0, 2))
    for name, value in facts.shape().items():
        table.add_row(name, value)
    table.add_row("parameters", billions(facts.parameters))
    return table


def _memory(facts: Facts) -> Table:
    from rich.table import Table

    from fastslow.engine.kv.budget import format_bytes

    table = Table("dtype", "weights", "KV per token", "KV of a full context")
    for name, cost in facts.memory.items():
        own = " (its own)" if name == facts.config.dtype else ""
        full = cost.kv_per_token * facts.config.context
        table.add_row(
            name + own,
            format_bytes(cost.weights),
            format_bytes(cost.kv_per_token),
            format_bytes(full),
        )
    return table


def _modes(facts: Facts) -> Table:
    from rich.table import Table

    from fastslow.engine.cli.facts import billions

    table = Table("mode", "groups", "thinking", "active per token", "description")
    for mode in facts.modes.values():
        groups = facts.config.groups if mode.groups is None else mode.groups
        whole = "dense" if facts.config.extras is None else "one"
        shown = f"{groups} of {facts.config.groups}" if facts.config.groups else whole
        active = billions(facts.config.active_parameters(mode.groups))
        table.add_row(mode.name, shown, mode.thinking, active, mode.description)
    return table
