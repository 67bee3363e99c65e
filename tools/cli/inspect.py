"""`fastslow inspect`: what a checkpoint is, from its small files alone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastslow.engine.backends.loader import DTYPES
from fastslow.engine.kv.budget import format_bytes
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.tensors import active_parameters, parameters
from fastslow.engine.parallel.sharding import Parallel
from fastslow.engine.params import Mode
from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.policies.meaning import meaning
from fastslow.policies.modes import load_modes
from fastslow.tools.plan.shards import ShardPlan

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class ModeCost:
    """Bytes in one dtype."""

    weights: int
    kv_per_token: int


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """A checkpoint's config, tokenizer and presets.

    `tokenizer` is one line for people; `memory` maps dtype names to bytes.
    """

    config: ModelConfig
    tokenizer: str
    modes: dict[str, Mode]
    parameters: int
    memory: dict[str, ModeCost]

    @classmethod
    def of(cls, folder: Path, own_modes: str | None = None) -> CheckpointFacts:
        """Read the small files of `folder`, and the user's presets. ValueError in one sentence for
        what does not fit."""
        config = ModelConfig.from_folder(folder)
        weights = parameters(config)
        memory = {
            name: ModeCost(weights * DTYPES[name].itemsize, config.kv_bytes_per_token(DTYPES[name]))
            for name in SHOWN
        }
        modes = load_modes(folder, config.groups, own_modes)
        return cls(config, _tokenizer(folder), modes, weights, memory)

    def shape(self) -> dict[str, str]:
        """Lines for people."""
        c = self.config
        lines = {
            "architecture": c.architecture,
            "layers": f"{c.layers} of {c.hidden_size}",
            "attention": f"{c.heads} heads over {c.kv_heads} KV heads of {c.head_dim}",
        }
        if c.groups:
            lines["experts"] = (
                f"{c.groups} groups of {c.experts // c.groups}, each of {c.moe_intermediate_size}; "
                f"shared {c.shared_intermediate_size}"
            )
        elif c.pangu_v2 is not None:
            dense = f"; dense layers: {len(c.mlp_only_layers)}" if c.mlp_only_layers else ""
            lines["experts"] = (
                f"best {c.chosen} of {c.experts}, each of {c.moe_intermediate_size}; "
                f"shared {c.shared_intermediate_size}{dense}"
            )
        else:
            lines["MLP"] = f"dense, {c.intermediate_size}"
        scaling = f", rope scaling {c.rope_scaling.kind}" if c.rope_scaling else ""
        lines["context"] = f"{c.context} tokens{scaling}"
        lines["vocabulary"] = str(c.vocab_size)
        lines["tokenizer"] = self.tokenizer
        return lines

    def record(self) -> dict[str, Any]:
        """For programs: sizes in bytes, counts in parameters."""
        c = self.config
        modes = {
            name: {
                **mode.model_dump(exclude={"name"}),
                "active_parameters": active_parameters(c, mode.groups),
                "words": meaning(mode, c.groups),
            }
            for name, mode in self.modes.items()
        }
        return {
            "architecture": c.architecture,
            "layers": c.layers,
            "hidden_size": c.hidden_size,
            "heads": c.heads,
            "kv_heads": c.kv_heads,
            "head_dim": c.head_dim,
            "groups": c.groups,
            "experts": c.experts,
            "context": c.context,
            "vocab_size": c.vocab_size,
            "dtype": c.dtype,
            "tokenizer": self.tokenizer,
            "parameters": self.parameters,
            "memory": {name: asdict(cost) for name, cost in self.memory.items()},
            "modes": modes,
        }


def billions(count: int) -> str:
    """A number of parameters for people: "71.97 B"."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _tokenizer(folder: Path) -> str:
    for name in ("tokenizer.json", "tokenizer.model"):
        if (folder / name).is_file():
            tokenizer = load_tokenizer(folder)
            ends = ", ".join(repr(tokenizer.piece(number)) for number in sorted(tokenizer.eos_ids))
            return f"{name}, {tokenizer.vocab_size} ids, an answer ends at {ends or 'nothing'}"
    return "none: prompts are token ids"


def plan_of(config: ModelConfig, layout: str) -> ShardPlan:
    """The plan of "ep=8,tp=1", in the checkpoint's own dtype. ValueError if it does not fit."""
    return ShardPlan.of(config, Parallel.parse(layout), DTYPES[config.dtype or "float32"])


def shares_table(plan: ShardPlan) -> Table:
    """A line a rank, and what a row of a layer costs in bytes sent."""
    from rich.table import Table

    name = str(plan.dtype).removeprefix("torch.")
    sent = format_bytes(_sent(plan))
    title = f"{plan.parallel} in {name}; a row of a layer sends {sent} between ranks"
    table = Table(
        "rank", "dp rank", "heads", "KV heads", "groups", "weights", "KV per token", title=title
    )
    for share in plan.shares:
        place = share.place
        groups = f"{place.groups.start}-{place.groups.stop - 1}" if place.groups else "-"
        table.add_row(
            str(place.rank),
            str(place.dp_rank),
            str(place.heads),
            str(place.kv_heads),
            groups,
            format_bytes(share.weights),
            format_bytes(share.kv_per_token),
        )
    return table


def shares_record(plan: ShardPlan) -> dict[str, Any]:
    """For programs: sizes in bytes."""
    return {
        "ep": plan.parallel.ep,
        "tp": plan.parallel.tp,
        "dp": plan.parallel.dp,
        "sent_per_row_and_layer": _sent(plan),
        "ranks": [
            {
                "rank": share.place.rank,
                "dp_rank": share.place.dp_rank,
                "heads": share.place.heads,
                "kv_heads": share.place.kv_heads,
                "groups": list(share.place.groups),
                "weights": share.weights,
                "kv_per_token": share.kv_per_token,
            }
            for share in plan.shares
        ],
    }


def _sent(plan: ShardPlan) -> int:
    """Bytes that all ranks together send for one row of one layer."""
    return sum(plan.layer_traffic(1).values())


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
    from fastslow.models.locate import resolve_model
    from fastslow.tools.cli.screen import console, quiet_log

    quiet_log()
    if routing is not None:
        from fastslow.tools.cli.inspect_routing import Asked, show_routing

        asked = Asked(routing, prompts, answer, ranks, batch, gate, picture)
        show_routing(model, asked, as_json)
        return
    facts = CheckpointFacts.of(resolve_model(model))
    plan = None if parallel is None else plan_of(facts.config, parallel)
    if as_json:
        record = facts.record() | ({} if plan is None else {"parallel": shares_record(plan)})
        console().out(json.dumps(record, ensure_ascii=False), highlight=False)
        return
    for table in (_shape(facts), _memory(facts), _modes(facts)):
        console().print(table)
    if plan is not None:
        console().print(shares_table(plan))


def _shape(facts: CheckpointFacts) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for name, value in facts.shape().items():
        table.add_row(name, value)
    table.add_row("parameters", billions(facts.parameters))
    return table


def _memory(facts: CheckpointFacts) -> Table:
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


def _modes(facts: CheckpointFacts) -> Table:
    from rich.table import Table

    table = Table("mode", "groups", "thinking", "active per token", "description")
    for mode in facts.modes.values():
        groups = facts.config.groups if mode.groups is None else mode.groups
        whole = "dense" if facts.config.pangu_v2 is None else "one"
        shown = f"{groups} of {facts.config.groups}" if facts.config.groups else whole
        active = billions(active_parameters(facts.config, mode.groups))
        table.add_row(mode.name, shown, mode.thinking, active, mode.description)
    return table
