"""`fastslow simulate`: many replicas without machines, to size a deployment and to compare routers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastslow.tools.cli.options import (
    ModelOptions,
    check_writable,
    expand_options,
    listed,
    numbers,
    shown_option,
)

if TYPE_CHECKING:
    from fastslow.tools.simulate.figures import ClusterFigures, ComparedFigure

simulate = typer.Typer(
    name="simulate",
    help="Simulate many replicas: which router, how many, at what cost (docs/sizing.md).",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Out = Annotated[Path, typer.Option("--out", "-o", help="File to write.")]
Running = Annotated[int, shown_option("Most requests in a step.", min=1)]
PromptRows = Annotated[int, shown_option("Most rows of prompts in a step.", min=1)]


@simulate.command()
@expand_options
def run(
    trace: Annotated[Path, typer.Argument(help="Requests: JSON lines of `make` or `record`.")],
    costs: Annotated[Path, typer.Option(help="What steps take: a file of `plan` or `measure`.")],
    replicas: Annotated[str, shown_option("How many, such as 2 or 2,8,32,1000.")] = "2",
    router: Annotated[
        str, shown_option("fastslow: the server's; pow2: a model of Ray's. Both: fastslow,pow2.")
    ] = "fastslow",
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
    """Send a trace through a router to simulated replicas: waiting times, prefix hits and cost.

    Examples:
      fastslow simulate make -o trace.jsonl --requests 5000 --rate 20 --deep 0.2
      fastslow simulate plan -o costs.json --device 800i-a2 --cards 4
      fastslow simulate run trace.jsonl --costs costs.json --replicas 2,4,8 --router fastslow,pow2
      fastslow simulate run recorded.jsonl --costs costs.json --replicas 2 --compare recorded.jsonl

    The router is the server's own code. Ctrl-C shows what there is until then.
    """
    counts, names = numbers("replicas", replicas), listed("router", router)
    if out is not None:
        check_writable(out)
    from fastslow.tools.cli.screen import console
    from fastslow.tools.progress import progress_bar
    from fastslow.tools.simulate import figures
    from fastslow.tools.simulate.cluster import ClusterSettings, SimulatedCluster
    from fastslow.tools.simulate.costs import read_costs
    from fastslow.tools.simulate.trace import read_trace

    machine, requests = read_costs(costs), read_trace(trace)
    recorded = None if compare is None else figures.measured_times(read_trace(compare))
    clusters = [
        SimulatedCluster(
            requests, machine, ClusterSettings(count, name, machine_replicas, seed=seed)
        )
        for count in counts
        for name in names
    ]
    possible = figures.possible_hit_rate(requests, machine.page_tokens)
    found: list[ClusterFigures] = []
    compared: list[ComparedFigure] = []
    stopped = False
    with progress_bar() as told:
        try:
            for place, cluster in enumerate(clusters):
                name, count = cluster.settings.router, cluster.settings.replicas
                told(place / len(clusters), f"{name}, {count} replicas")
                result = cluster.run()
                found.append(figures.figures(name, count, result, possible))
                if recorded is not None:
                    compared += figures.compare(recorded, figures.simulated_times(result))
        except KeyboardInterrupt:
            if not found:
                raise
            stopped = True
    console().print(f"{trace.name}: {len(requests):,} requests; {machine.source or costs.name}")
    _show(found, compared)
    if out is not None:
        record: dict[str, Any] = {"trace": str(trace), "costs": machine.model_dump()}
        record |= {"stopped": stopped, "simulations": [asdict(one) for one in found]}
        record |= {"compared": [asdict(one) for one in compared]}
        out.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        console().print(f"figures in {out}")
    if stopped:
        raise KeyboardInterrupt


def _show(found: list[ClusterFigures], compared: list[ComparedFigure]) -> None:
    from fastslow.tools.cli.screen import show
    from fastslow.tools.cli.simulate_tables import cluster_table, compared_table, latency_table

    show(latency_table(found))
    show(cluster_table(found))
    if compared:
        show(compared_table(compared))


@simulate.command()
@expand_options
def make(
    out: Out,
    requests: Annotated[int, shown_option("How many.")] = 2_000,
    rate: Annotated[float, shown_option("Requests a second, on average.")] = 4.0,
    deep: Annotated[float, shown_option("Share of requests that think.")] = 0.2,
    deep_tokens: Annotated[int, shown_option("Median of deep answers, with thoughts.")] = 2_000,
    answer_tokens: Annotated[int, shown_option("Median of a chat's answers.")] = 150,
    bots: Annotated[int, shown_option("System prompts, each shared by its chats.")] = 20,
    system_tokens: Annotated[int, shown_option("Length of a system prompt.")] = 1_000,
    turns: Annotated[float, shown_option("Mean questions of a chat.")] = 4.0,
    latency_ms: Annotated[
        float | None, typer.Option(help="Latency target of quick requests; default: none.")
    ] = None,
    seed: Annotated[int, shown_option("The same one gives the same trace.")] = 0,
) -> None:
    """Make a trace: chats of bots with shared system prompts, and questions that need thought.

    Example:
      fastslow simulate make -o trace.jsonl --requests 20000 --rate 50 --deep 0.1 --bots 200
    """
    check_writable(out)
    from fastslow.tools.cli.screen import console
    from fastslow.tools.simulate.synthetic import TraceRecipe, make_trace
    from fastslow.tools.simulate.trace import write_trace

    recipe = TraceRecipe(
        requests=requests,
        rate=rate,
        deep=deep,
        deep_tokens=deep_tokens,
        answer_tokens=answer_tokens,
        bots=bots,
        system_tokens=system_tokens,
        turns=turns,
        latency_ms=latency_ms,
        seed=seed,
    )
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
        typer.Option(
            help="Latency target of requests of these modes, which a log does not have.", min=0.001
        ),
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
    console().print(f"{len(found.requests):,} requests: {out}")
    for reason, count in found.left_out.items():
        console().print(f"{count:,} lines {reason} left out")
    for note in found.notes:
        console().print(note)


@simulate.command()
@expand_options
def plan(
    out: Out,
    model: Annotated[str, shown_option("As `fastslow plan` has it.")] = "openpangu-pro-moe-72b",
    device: Annotated[str, shown_option("800i-a2, 300i-duo, h100 or this-cpu.")] = "800i-a2",
    cards: Annotated[int, shown_option("Cards of one replica.", min=1, max=1024)] = 4,
    weights: Annotated[str, shown_option("As `fastslow plan` has it.")] = "w8a8",
    max_running: Running = 256,
    prompt_rows: PromptRows = 2048,
    draft: Annotated[int, shown_option("Tokens drafted per request and step.", min=0, max=8)] = 0,
    acceptance: Annotated[
        float,
        shown_option("Chance that a drafted token is accepted, or from 1 on tokens a step.", min=0),
    ] = 0.7,
) -> None:
    """Plan what steps take on cards that need not be here, by mode and rows (docs/planner.md).

    Example:
      fastslow simulate plan -o costs.json --device 300i-duo --cards 4 --max-running 64
    """
    check_writable(out)
    from fastslow.tools.cli.screen import console
    from fastslow.tools.simulate.costs import write_costs
    from fastslow.tools.simulate.planned import planned_costs

    more = {"weights": weights, "max_running": max_running, "prompt_rows": prompt_rows}
    made = planned_costs(model, device, cards, **more, nodes=draft, acceptance=acceptance)  # type: ignore[arg-type]
    write_costs(out, made)
    tokens = made.pages * made.page_tokens
    console().print(f"{made.source}: {tokens:,} tokens of keys and values a replica: {out}")


@simulate.command()
@expand_options
def measure(
    options: ModelOptions,
    out: Out,
    modes: Annotated[str, shown_option("Whose steps are measured.")] = "fast,deep",
    max_running: Running = 64,
    prompt_rows: PromptRows = 512,
    first_ms: Annotated[
        float, shown_option("Way from a client to a replica and back.", min=0, max=1e6)
    ] = 0.0,
    beside: Annotated[
        int,
        shown_option("Measure how much 1, 2, ... other engines slow this one.", min=0, max=64),
    ] = 0,
    other_share: Annotated[
        float,
        shown_option(
            "With --beside: seconds that all else computes on the same cores for each second of a step.",
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

    from fastslow.engine.host.machine import cores
    from fastslow.tools.cli.screen import console, quiet_log
    from fastslow.tools.progress import progress_bar
    from fastslow.tools.simulate.costs import write_costs
    from fastslow.tools.simulate.measured import (
        measured_costs,
        measured_slowdown,
        shared_slowdown,
    )
    from fastslow.tools.simulate.neighbours import neighbours

    quiet_log()
    how = {"max_running": max_running, "prompt_rows": prompt_rows, "remember": False}
    with options.load(**how) as llm, progress_bar() as told:
        slowdown: tuple[float, ...] = ()
        if beside:
            loaded = options.arguments | how
            with neighbours(beside, str(options.folder), loaded, names[0]) as others:
                slowdown = measured_slowdown(llm, names[0], others, beside, told)
        threads = get_num_threads()
        shared = shared_slowdown(slowdown, other_share / threads, cores() / threads)
        way = first_ms / 1000
        made = measured_costs(
            llm, names, prompt_rows, first_seconds=way, slowdown=shared, told=told
        )
    write_costs(out, made)
    console().print(f"steps of {', '.join(names)}: {out}")
