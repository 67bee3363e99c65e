"""`fastslow simulate`: many replicas without machines, to size a deployment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Column, Table

from fastslow.tools.cli.options import (
    ModelOptions,
    check_writable,
    command_group,
    expand_options,
    listed,
    numbers,
)
from fastslow.tools.cli.screen import console, quiet_log, show
from fastslow.tools.simulate.synthetic import TraceRecipe

if TYPE_CHECKING:
    from fastslow.tools.simulate.figures import ClusterFigures, ModeFigures

simulate = command_group(
    "simulate", "Simulate many replicas: how many, at what cost (docs/sizing.md)."
)

Out = Annotated[Path, typer.Option("--out", "-o", help="File to write.")]


@simulate.command()
@expand_options
def run(
    trace: Annotated[Path, typer.Argument(help="Requests: JSON lines, such as those of `make`.")],
    costs: Annotated[
        Path, typer.Option(help="What steps take: a file of `measure` or `fastslow plan --costs`.")
    ],
    replicas: Annotated[str, typer.Option(help="How many, such as 2 or 2,8,32,1000.")] = "2",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="JSON file for all figures.")
    ] = None,
) -> None:
    """Send a trace through the server's router to simulated replicas: waiting times, prefix hits and cost.

    Examples:
      fastslow simulate make -o trace.jsonl --requests 5000 --rate 20 --deep 0.2
      fastslow plan --device 800i-a2 --cards 4 --costs costs.json
      fastslow simulate run trace.jsonl --costs costs.json --replicas 2,4,8

    Measured times that a trace has are shown below the simulated ones.
    """
    counts = numbers("replicas", replicas)
    if out is not None:
        check_writable(out)
    from fastslow.engine.host.progress import progress_bar
    from fastslow.tools.simulate import figures
    from fastslow.tools.simulate.cluster import SimulatedCluster
    from fastslow.tools.simulate.costs import read_costs
    from fastslow.tools.simulate.trace import read_trace

    machine, requests = read_costs(costs), read_trace(trace)
    clusters = [SimulatedCluster(requests, machine, n) for n in counts]
    found: list[ClusterFigures] = []
    with progress_bar() as report:
        for place, cluster in enumerate(clusters):
            report(place / len(clusters), f"{cluster.replicas} replicas")
            answers = cluster.run()
            found.append(figures.figures(cluster.replicas, answers, cluster.replica_seconds))
    measured = figures.by_mode(figures.measured(requests))
    console().print(f"{trace.name}: {len(requests):,} requests; {machine.source or costs.name}")
    show(latency_table({str(one.replicas): one.modes for one in found} | {"measured": measured}))
    for one in found:
        hits, hours = one.modes["all"].hit_rate, _number(one.replica_hours)
        console().print(
            f"{one.replicas} replicas: {hits:.0%} of the prompts' tokens were in a cache; {hours} replica-hours, "
            f"{_number(one.hours_per_million)} for a million answered tokens",
            soft_wrap=True,
        )
    if out is not None:
        record: dict[str, Any] = {"trace": str(trace), "costs": machine.model_dump()}
        record["simulations"] = [asdict(one) for one in found]
        record["measured"] = {mode: asdict(one) for mode, one in measured.items()}
        out.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        console().print(f"figures in {out}")


@simulate.command()
@expand_options
def make(out: Out, recipe: TraceRecipe) -> None:
    """Make a trace: chats of bots with shared system prompts, and questions that need thought.

    Example:
      fastslow simulate make -o trace.jsonl --requests 20000 --rate 50 --deep 0.1 --bots 200
    """
    check_writable(out)
    from fastslow.tools.simulate.synthetic import make_trace
    from fastslow.tools.simulate.trace import write_trace

    made = make_trace(recipe)
    write_trace(out, made)
    console().print(
        f"{len(made):,} requests in {made[-1].arrival:,.0f} s, {sum(one.deep for one in made):,} deep; "
        f"{sum(one.prompt_tokens for one in made):,} tokens of prompts, "
        f"{sum(one.answer_tokens for one in made):,} of answers: {out}"
    )


@simulate.command()
@expand_options
def measure(
    options: ModelOptions,
    out: Out,
    modes: Annotated[str, typer.Option(help="Whose steps are measured.")] = "fast,deep",
    max_running: Annotated[int, typer.Option(help="Most requests in a step.", min=1)] = 64,
    prompt_rows: Annotated[int, typer.Option(help="Most rows of prompts in a step.", min=1)] = 512,
    first_ms: Annotated[
        float, typer.Option(help="Way from a client to a replica and back.", min=0, max=1e6)
    ] = 0.0,
) -> None:
    """Measure what steps take on this machine, by mode and rows: run it as a replica runs, on as many threads.

    Example:
      fastslow simulate measure --model path/to/checkpoint -o costs.json
    """
    check_writable(out)
    names = listed("modes", modes)
    from fastslow.engine.host.progress import progress_bar
    from fastslow.tools.simulate import measured
    from fastslow.tools.simulate.costs import write_costs

    quiet_log()
    how = {"max_running": max_running, "prompt_rows": prompt_rows, "remember": False}
    with options.load(**how) as llm, progress_bar() as report:
        made = measured.measured_costs(llm, names, prompt_rows, report)
    write_costs(out, made.model_copy(update={"first_seconds": first_ms / 1000}))
    console().print(f"steps of {', '.join(names)}: {out}")


def latency_table(rows: Mapping[str, Mapping[str, ModeFigures]]) -> Table:
    """Tabulate how long requests wait, and whether they are in time. rows: by the number of replicas, or "measured"."""
    first = [f"first\ntoken\np{share} s" for share in (50, 95, 99)]
    later = [f"later\ntokens\np{share} ms" for share in (50, 95, 99)]
    table = Table(
        *(
            Column(title, justify="right", no_wrap=title != "mode", vertical="bottom")
            for title in ("replicas", "mode", *first, *later, "in\ntime")
        ),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption_justify="left",
        collapse_padding=True,
        caption="in time: first token and mean later token both within the latency target",
    )
    for name, modes in rows.items():
        for place, (mode, figures) in enumerate(modes.items()):
            each = [_number(1000 * value) for value in figures.each] or ["-"] * 3
            in_time = "-" if figures.in_time is None else f"{figures.in_time:.0%}"
            table.add_row("" if place else name, mode, *map(_number, figures.first), *each, in_time)
        table.add_section()
    return table


def _number(value: float) -> str:
    """At most six characters, below a million: thousandths, or fewer digits where it is larger."""
    if value >= 1e6:
        return f"{value:.0e}"
    return f"{value:.{3 if value < 10 else 1 if value < 100 else 0}f}"
