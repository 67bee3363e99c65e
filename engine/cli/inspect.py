"""`fastslow inspect`: what a checkpoint is, from its small files alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from fastslow.engine.cli.facts import Facts


def inspect(
    model: Annotated[str, typer.Argument(help="Checkpoint folder or built-in name.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show a checkpoint: parameters, memory, context, tokenizer and modes. Reads no weights.

    Examples:
      fastslow inspect path/to/checkpoint
      fastslow inspect smollm2-moge --json
    """
    from fastslow.engine.cli.facts import Facts
    from fastslow.engine.cli.screen import console, quiet_log
    from fastslow.engine.locate import resolve_model

    quiet_log()
    facts = Facts.of(resolve_model(model))
    if as_json:
        console().out(json.dumps(facts.record(), ensure_ascii=False), highlight=False)
        return
    for table in (_shape(facts), _memory(facts), _modes(facts)):
        console().print(table)


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
        shown = f"{groups} of {facts.config.groups}" if facts.config.groups else "dense"
        active = billions(facts.config.active_parameters(mode.groups))
        table.add_row(mode.name, shown, mode.thinking, active, mode.description)
    return table
