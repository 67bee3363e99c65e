"""`fastslow inspect`: what a checkpoint is, from its small files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fastslow.tools.cli.options import ROUTING, RoutingOptions, expand_options, option


@expand_options
def inspect(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, GGUF file or built-in name.")],
    options: RoutingOptions,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    routing: Annotated[
        Path | None,
        option("Prompts, JSON Lines: measure tokens per expert, group and rank.", ROUTING),
    ] = None,
    parallel: Annotated[
        str | None, option("Ranks that would share it, such as ep=8,tp=1,dp=1.")
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
    from fastslow.tools.cli.checkpoint_facts import (
        CheckpointFacts,
        shard_plan,
        shards_record,
        shards_table,
    )
    from fastslow.tools.cli.inspect_routing import show_routing
    from fastslow.tools.cli.screen import console, quiet_log, show

    quiet_log()
    if routing is not None:
        show_routing(model, routing, options, as_json)
        return
    facts = CheckpointFacts.of(model)
    plan = None if parallel is None else shard_plan(facts.config, parallel)
    if as_json:
        record = facts.record() | ({} if plan is None else {"parallel": shards_record(plan)})
        console().out(json.dumps(record, ensure_ascii=False), highlight=False)
        return
    for table in facts.tables():
        show(table)
    if plan is not None:
        show(shards_table(plan))
