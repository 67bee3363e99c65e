"""`fastslow simulate`: many replicas without machines, to size a deployment."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Column, Table

from fastslow.tools.cli.options import (
    ModelOptions,
    check_writable,
    expand_options,
    listed,
    numbers,
    shown_option,
)
from fastslow.tools.simulate.synthetic import TraceRecipe

if TYPE_CHECKING:
    from fastslow.tools.simulate.figures import ClusterFigures, ComparedFigure

simulate = typer.Typer(
    name="simulate",
    help="Simulate many replicas: how many, at what cost (docs/sizing.md).",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Out = Annotated[Path, typer.Option("--out", "-o", help="File to write.")]


@simulate.command()
@expand_options
def run(
    trace: Annotated[Path, typer.Argument(help="Requests: JSON lines of `make` or `record`.")],
    costs: Annotated[
        Path, typer.Option(help="What steps take: a file of `measure` or `fastslow plan --costs`.")
    ],
    replicas: Annotated[str, shown_option("How many, such as 2 or 2,8,32,1000.")] = "2",
    machine_replicas: Annotated[
        int,
        shown_option("On one machine; they slow each other as `measure --beside` found.", min=1),
    ] = 1,
    compare: Annotated[
        Path | None,
        typer.Option(help="A recorded trace with measured times, simulated beside measured."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="JSON file for all figures.")
    ] = None,
    seed: Annotated[int, shown_option("Of all random choices.", min=0)] = 0,
) -> None:
    """Send a trace through the server's router to simulated replicas: waiting times, prefix hits and cost.

    Examples:
      fastslow simulate make -o trace.jsonl --requests 5000 --rate 20 --deep 0.2
      fastslow plan --device 800i-a2 --cards 4 --costs costs.json
      fastslow simulate run trace.jsonl --costs costs.json --replicas 2,4,8
      fastslow simulate run recorded.jsonl --costs costs.json --replicas 2 --compare recorded.jsonl
    """
    counts = numbers("replicas", replicas)
    if out is not None:
        check_writable(out)
    from fastslow.tools.cli.screen import console, show
    from fastslow.tools.progress import progress_bar
    from fastslow.tools.simulate import figures
    from fastslow.tools.simulate.cluster import SimulatedCluster
    from fastslow.tools.simulate.costs import read_costs
    from fastslow.tools.simulate.trace import read_trace

    machine, requests = read_costs(costs), read_trace(trace)
    recorded = None if compare is None else figures.measured_times(read_trace(compare))
    clusters = [SimulatedCluster(requests, machine, n, machine_replicas, seed) for n in counts]
    possible = figures.possible_hit_rate(requests, machine.page_tokens)
    found: list[ClusterFigures] = []
    compared: list[ComparedFigure] = []
    with progress_bar() as told:
        for place, cluster in enumerate(clusters):
            told(place / len(clusters), f"{cluster.replicas} replicas")
            result = cluster.run()
            found.append(figures.figures(cluster.replicas, result, possible))
            if recorded is not None:
                compared += figures.compare(recorded, figures.simulated_times(result))
    console().print(f"{trace.name}: {len(requests):,} requests; {machine.source or costs.name}")
    show(latency_table(found))
    show(cluster_table(found))
    if compared:
        show(compared_table(compared))
    if out is not None:
        record: dict[str, Any] = {"trace": str(trace), "costs": machine.model_dump()}
        record["simulations"] = [asdict(one) for one in found]
        record["compared"] = [asdict(one) for one in compared]
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
    from fastslow.tools.cli.screen import console
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
def record(
    log: Annotated[Path, typer.Argument(help="The log of `fastslow serve --log-format json`.")],
    out: Out,
    quick: Annotated[
        str, shown_option("Modes that do not think; all others count as deep.")
    ] = "fast",
    latency_ms: Annotated[
        float | None,
        typer.Option(help="Latency target of requests of these modes: not in a log.", min=0.001),
    ] = None,
) -> None:
    """Make a trace of a server's log, with the times that were measured.

    Examples:
      fastslow serve path/to/checkpoint --log-format json --log-file serve.log --log-texts
      fastslow simulate record serve.log -o recorded.jsonl

    With --log-texts prompts that begin alike are found by their text; without it this is guessed from the
    tokens that were found in the cache.
    """
    check_writable(out)
    from fastslow.tools.cli.screen import console
    from fastslow.tools.simulate.server_log import read_log
    from fastslow.tools.simulate.trace import write_trace

    found = read_log(log, frozenset(listed("quick", quick)), latency_ms)
    write_trace(out, found.requests)
    left_out = [f"{count:,} lines {reason} left out" for reason, count in found.left_out.items()]
    for line in (f"{len(found.requests):,} requests: {out}", *left_out, *found.notes):
        console().print(line)


@simulate.command()
@expand_options
def measure(
    options: ModelOptions,
    out: Out,
    modes: Annotated[str, shown_option("Whose steps are measured.")] = "fast,deep",
    max_running: Annotated[int, shown_option("Most requests in a step.", min=1)] = 64,
    prompt_rows: Annotated[int, shown_option("Most rows of prompts in a step.", min=1)] = 512,
    first_ms: Annotated[
        float, shown_option("Way from a client to a replica and back.", min=0, max=1e6)
    ] = 0.0,
    beside: Annotated[
        int, shown_option("Measure how much 1, 2, ... other engines slow this one.", min=0, max=64)
    ] = 0,
    other_share: Annotated[
        float,
        shown_option(
            "With --beside: seconds that all else computes for each second of a step.",
            min=0,
            max=10,
        ),
    ] = 0.0,
) -> None:
    """Measure what steps take on this machine, by mode and rows: run it as a replica runs, on as many threads.

    Examples:
      fastslow simulate measure --model path/to/checkpoint -o costs.json
      OMP_NUM_THREADS=1 fastslow simulate measure --model smollm2-moge -o costs.json --beside 2
    """
    check_writable(out)
    names = listed("modes", modes)
    if other_share and not beside:
        raise ValueError(f"other_share={other_share:g} needs --beside: it is part of that slowdown")
    from torch import get_num_threads

    from fastslow.tools.cli.screen import console, quiet_log
    from fastslow.tools.progress import progress_bar
    from fastslow.tools.simulate import measured
    from fastslow.tools.simulate.costs import write_costs

    quiet_log()
    how = {"max_running": max_running, "prompt_rows": prompt_rows, "remember": False}
    found: dict[str, Any] = {"first_seconds": first_ms / 1000}
    with options.load(**how) as llm, progress_bar() as told:
        if beside:
            loaded = options.arguments | how
            with measured.neighbours(beside, str(options.folder), loaded, names[0]) as others:
                slowdown = measured.measured_slowdown(llm, names[0], others, told)
            found["slowdown"] = measured.shared_slowdown(slowdown, other_share, get_num_threads())
        made = measured.measured_costs(llm, names, prompt_rows, told)
    write_costs(out, made.model_copy(update=found))
    console().print(f"steps of {', '.join(names)}: {out}")


def latency_table(found: list[ClusterFigures]) -> Table:
    """A row for each mode of each simulation: how long requests wait, and whether they are in time."""
    first = [f"first\ntoken\np{share} s" for share in (50, 95, 99)]
    later = [f"later\ntokens\np{share} ms" for share in (50, 95, 99)]
    table = _table("replicas", "mode", *first, *later, "in\ntime")
    for one in found:
        for place, (mode, figures) in enumerate(one.modes.items()):
            each = [_number(1000 * value) for value in figures.each] or ["-"] * 3
            in_time = _percent(figures.in_time)
            named = "" if place else str(one.replicas)
            table.add_row(named, mode, *map(_number, figures.first), *each, in_time)
        table.add_section()
    table.caption = "in time: first token and mean later token both within the latency target"
    return table


def cluster_table(found: list[ClusterFigures]) -> Table:
    """A row for each simulation: what its replicas did, and what that cost."""
    titles = "busy", "cache\nhits", "most\nhits", "replica-\nhours", "for 1M\ntokens"
    table = _table("replicas", *titles)
    for one in found:
        shares = map(_percent, (one.busy, one.modes["all"].hit_rate, one.possible_hit_rate))
        hours = _number(one.replica_hours), _number(one.hours_per_million)
        table.add_row(str(one.replicas), *shares, *hours)
    table.caption = (
        "hits: prompt tokens found in a prefix cache; most: in one cache without a limit"
    )
    return table


def compared_table(compared: list[ComparedFigure]) -> Table:
    """Simulated beside measured."""
    table = _table("mode", "what", "", "measured\nms", "simulated\nms", "off")
    for one in compared:
        times = _number(1000 * one.measured), _number(1000 * one.simulated)
        table.add_row(one.mode, one.what, f"p{one.percentile}", *times, f"{one.off:+.0%}")
    return table


def _table(*titles: str) -> Table:
    """Columns of figures, which never wrap, except modes."""
    columns = [
        Column(title, justify="right", no_wrap=title != "mode", vertical="bottom")
        for title in titles
    ]
    return Table(
        *columns, box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left", collapse_padding=True
    )


def _number(value: float) -> str:
    """At most six characters, below a million: thousandths, or fewer digits where it is larger."""
    if value >= 1e6:
        return f"{value:.0e}"
    return f"{value:.{3 if value < 10 else 1 if value < 100 else 0}f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
