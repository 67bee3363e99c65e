"""`fastslow inspect` and `fastslow modes`: what a checkpoint is, and what its presets mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from fastslow.tools.cli.options import AsJson, expand_options
from fastslow.tools.cli.screen import console, quiet_log, show, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from fastslow.engine.params import Mode
    from fastslow.tools.cli.checkpoints.checkpoint_facts import CheckpointFacts

SIDES, COLUMN = 20, 20  # characters: of the first column, and of a preset's at least


@expand_options
def inspect(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, GGUF file or built-in name.")],
    as_json: AsJson = False,
) -> None:
    """Show a checkpoint: parameters, memory, context, tokenizer and modes. Reads no weights.

    Examples:
      fastslow inspect path/to/checkpoint
      fastslow inspect smollm2-moge --json
    """
    from fastslow.tools.cli.checkpoints.checkpoint_facts import CheckpointFacts

    quiet_log()
    facts = CheckpointFacts.of(model)
    if as_json:
        write_json(facts.record())
        return
    for table in facts.tables():
        show(table)
    _show_modes(facts, short=True)


@expand_options
def modes(
    model: Annotated[
        str, typer.Argument(help="Checkpoint folder, GGUF file or built-in name.")
    ] = "smollm2-moge",
    own: Annotated[
        str | None, typer.Option("--modes", help="JSON file with presets of your own.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what each mode of a model means: experts, thinking, budget, sampling, drafts. Reads no weights.

    Presets are built in, changed and joined by the checkpoint's fastslow.json, and these by a file
    of your own:

      {"modes": {"bot": {"base": "fast", "sampling": {"temperature": 0.6}},
                 "brief": {"base": "deep", "thinking_budget": 200, "closing": "\\n"}}}

    Examples:
      fastslow modes
      fastslow modes path/to/checkpoint --modes mine.json
      fastslow generate "How many?" --modes mine.json --mode brief
    """
    from fastslow.tools.cli.checkpoints.checkpoint_facts import CheckpointFacts

    quiet_log()
    facts = CheckpointFacts.of(model, own)
    if as_json:
        write_json(facts.record()["modes"])
        return
    _show_modes(facts)


def _show_modes(facts: CheckpointFacts, short: bool = False) -> None:
    presets = list(facts.modes.values())
    beside = max(1, (console().width - SIDES) // COLUMN)
    for first in range(0, len(presets), beside):
        show(_table(facts, presets[first : first + beside], short))


def _table(facts: CheckpointFacts, presets: Sequence[Mode], short: bool) -> Table:
    """A column for each mode, a row for each side of it. short: experts and thinking alone."""
    from rich.table import Column, Table

    from fastslow.engine.model.routed_units import RoutedUnits
    from fastslow.engine.model.tensors import active_parameters
    from fastslow.models.hub.about import billions

    units = RoutedUnits.of(facts.config)
    words = [facts.words(mode) for mode in presets]
    names = (Column(mode.name, overflow="fold") for mode in presets)
    table = Table(Column(no_wrap=True), *names, show_lines=True)
    if any(mode.description for mode in presets):
        table.add_row("description", *(mode.description or "-" for mode in presets))
    for side in (units.name, "thinking") if short else words[0]:
        table.add_row(side, *(each[side] for each in words))
        if side == units.name:
            active = [active_parameters(facts.config, mode.routed) for mode in presets]
            shares = [
                "-" if mode.auto else f"{billions(n)}, {n / facts.parameters:.0%} of all"
                for mode, n in zip(presets, active)
            ]
            table.add_row("active parameters", *shares)
    return table
