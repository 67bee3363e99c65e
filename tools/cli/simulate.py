"""`fastslow simulate`: many replicas without machines, to size a deployment and to compare routers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastslow.tools.cli.options import (
    ModelOptions,
    check_writable,
    expand_options,
    listed,
    numbers,
    shown_option,
)
from fastslow.tools.cli.simulate_options import ClusterOptions, RecipeOptions

if TYPE_CHECKING:
    from fastslow.tools.simulate.comparison import ComparedFigure
    from fastslow.tools.simulate.figures import ClusterFigures

simulate = typer.Typer(
    name="simulate",
    help="Simulate many replicas: which router, how many, at what cost (docs/sizing.md).",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

PICTURES = ".html", ".svg"
SECONDS = 300.0  # of arrivals at each number of replicas

Out = Annotated[Path, typer.Option("--out", "-o", help="File to write.")]


@simulate.command()
@expand_options
def run(
    trace: Annotated[Path, typer.Argument(help="Requests: JSON lines of `make` or `record`.")],
    costs: Annotated[Path, typer.Option(help="What steps take: a file of `plan` or `measure`.")],
    options: ClusterOptions,
    replicas: Annotated[str, shown_option("How many, such as 2 or 2,8,32,1000.")] = "2",
    router: Annotated[
        str,
        shown_option(
            "fastslow: the real one; prefix, pow2: models of Ray's. Several: fastslow,pow2."
        ),
    ] = "fastslow",
    rate_each: Annotated[
        float | None,
        typer.Option(
            help="Requests a second and replica: more or fewer users like those of the trace.",
            min=1e-6,
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            help="With --rate-each: seconds of arrivals, or more until 5,000 requests; default: 300.",
            min=0.001,
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(help="A recorded trace with measured times, simulated beside measured."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="JSON file for all figures.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Charts against the replicas: FILE.html or FILE.svg.")
    ] = None,
) -> None:
    """Send a trace through a router to simulated replicas: waiting times, prefix hits and cost.

    Examples:
      fastslow simulate make -o trace.jsonl --requests 5000 --rate 20 --deep 0.2
      fastslow simulate plan -o costs.json --device 800i-a2 --cards 4
      fastslow simulate run trace.jsonl --costs costs.json --replicas 2,4,8
      fastslow simulate run trace.jsonl --costs costs.json --replicas 4 --router fastslow,prefix,pow2
      fastslow simulate run trace.jsonl --costs costs.json --replicas 2,32,1000 --rate-each 5 --picture p95.html
      fastslow simulate run recorded.jsonl --costs costs.json --replicas 2 --compare recorded.jsonl

    The router and the autoscaler are the server's own code. Ctrl-C shows what there is until then.
    """
    counts, names = numbers("replicas", replicas), listed("router", router)
    for path in (out, picture):
        if path is not None:
            check_writable(path)
    if seconds is not None and rate_each is None:
        raise ValueError(f"seconds={seconds:g} is for rate_each: give that, too")
    if picture is not None and picture.suffix not in PICTURES:
        raise ValueError(f"picture={str(picture)!r} must end with {' or '.join(PICTURES)}")
    from fastslow.tools.cli.screen import console, show
    from fastslow.tools.cli.simulate_tables import cluster_table, compared_table, latency_table
    from fastslow.tools.progress import progress_bar
    from fastslow.tools.simulate.comparison import compare as compare_times
    from fastslow.tools.simulate.costs import read_costs
    from fastslow.tools.simulate.figures import measured_times, simulated_times
    from fastslow.tools.simulate.report import page, svg
    from fastslow.tools.simulate.sweep import Sweep
    from fastslow.tools.simulate.trace import read_trace

    machine, requests = read_costs(costs), read_trace(trace)
    recorded = None if compare is None else measured_times(read_trace(compare))
    sweep = Sweep(requests, machine, options.settings(), rate_each, seconds or SECONDS)
    found: list[ClusterFigures] = []
    compared: list[ComparedFigure] = []
    stopped = False
    with progress_bar() as told:
        try:
            for result, figures in sweep.run(names, counts, told):
                found.append(figures)
                if recorded is not None:
                    compared += compare_times(recorded, simulated_times(result))
        except KeyboardInterrupt:
            if not found:
                raise
            stopped = True
    words = f"{trace.name}: {len(requests):,} requests; {machine.source or costs.name}"
    console().print(words)
    show(latency_table(found))
    show(cluster_table(found))
    for one in found:
        if one.deaths or one.preempted:
            console().print(
                f"{one.router}, {one.replicas} replicas: {one.deaths} deaths, {one.continued} answers that went on "
                f"elsewhere, {one.preempted} that lost their pages for a while"
            )
    if compared:
        show(compared_table(compared))
    if picture is not None:
        title = "Replicas, waiting and cost"
        drawn = svg(found) if picture.suffix == ".svg" else page(found, words, title)
        picture.write_text(drawn, "utf-8")
        console().print(f"wrote {picture}")
    if out is not None:
        record = {
            "trace": str(trace),
            "costs": machine.to_dict(),
            "rate_each": rate_each,
            "stopped": stopped,
            "simulations": [one.to_dict() for one in found],
            "compared": [
                {"mode": c.mode, "what": c.what, "percentile": c.percentile}
                | {"measured": c.measured, "simulated": c.simulated, "off": c.off}
                for c in compared
            ],
        }
        out.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        console().print(f"figures in {out}")
    if stopped:
        raise KeyboardInterrupt


@simulate.command()
@expand_options
def make(options: RecipeOptions, out: Out) -> None:
    """Make a trace: chats of bots with shared system prompts, and questions that need thought.

    Examples:
      fastslow simulate make -o trace.jsonl
      fastslow simulate make -o trace.jsonl --requests 20000 --rate 50 --deep 0.1 --bots 200 --burst 0.3
    """
    check_writable(out)
    from fastslow.tools.cli.screen import console
    from fastslow.tools.simulate.synthetic import make_trace
    from fastslow.tools.simulate.trace import write_trace

    requests = make_trace(options.recipe())
    write_trace(out, requests)
    seconds = requests[-1].arrival - requests[0].arrival
    deep = sum(one.deep for one in requests) / len(requests)
    console().print(
        f"{len(requests):,} requests in {seconds:,.0f} s, {deep:.0%} deep; "
        f"{sum(one.prompt_tokens for one in requests):,} tokens of prompts, "
        f"{sum(one.answer_tokens for one in requests):,} of answers: {out}"
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
            help="Latency target of requests of these modes, which a log does not tell.", min=0.001
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
    kv: Annotated[str, shown_option("Keys and values: bf16, int8, float32.")] = "bf16",
    max_running: Annotated[int, shown_option("Most requests in a step.", min=1)] = 256,
    prompt_rows: Annotated[int, shown_option("Most rows of prompts in a step.", min=1)] = 2048,
    draft: Annotated[int, shown_option("Tokens drafted per request and step.", min=0, max=8)] = 0,
    acceptance: Annotated[
        float,
        shown_option("Chance that a drafted token is accepted, or from 1 on tokens a step.", min=0),
    ] = 0.7,
    drafter: Annotated[str, shown_option("mtp or free, as `fastslow plan` has it.")] = "mtp",
    start_seconds: Annotated[
        float, shown_option("Seconds until a new replica answers.", min=0)
    ] = 300.0,
) -> None:
    """Plan what steps take on cards that need not be here, by mode and rows (docs/planner.md).

    Examples:
      fastslow simulate plan -o costs.json
      fastslow simulate plan -o costs.json --device 300i-duo --cards 4 --max-running 64
    """
    check_writable(out)
    from fastslow.tools.cli.screen import console
    from fastslow.tools.simulate.costs import write_costs
    from fastslow.tools.simulate.planned import planned_costs

    made = planned_costs(
        model,
        device,
        cards,
        weights=weights,
        kv=kv,
        max_running=max_running,
        prompt_rows=prompt_rows,
        nodes=draft,
        acceptance=acceptance,
        drafter=drafter,
        start_seconds=start_seconds,
    )
    write_costs(out, made)
    tokens = made.pages * made.page_tokens
    console().print(f"{made.source}: {tokens:,} tokens of keys and values a replica: {out}")


@simulate.command()
@expand_options
def measure(
    options: ModelOptions,
    out: Out,
    modes: Annotated[str, shown_option("Whose steps are measured.")] = "fast,deep",
    max_running: Annotated[int, shown_option("Most requests in a step.", min=1)] = 64,
    prompt_rows: Annotated[int, shown_option("Most rows of prompts in a step.", min=1)] = 512,
    first_ms: Annotated[
        float, shown_option("Way from a client to a replica and back.", min=0)
    ] = 0.0,
    start_seconds: Annotated[
        float, shown_option("Seconds until a new replica answers.", min=0)
    ] = 60.0,
    beside: Annotated[
        int,
        shown_option(
            "Measure, too, how much 1, 2, ... so many other engines on this machine slow this one.",
            min=0,
            max=64,
        ),
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
    from fastslow.tools.simulate.costs import check_times, write_costs
    from fastslow.tools.simulate.measured import (
        measured_costs,
        measured_slowdown,
        shared_slowdown,
    )
    from fastslow.tools.simulate.neighbours import Neighbours, check_memory

    check_times(first_ms / 1000, start_seconds)  # better known now than after minutes
    quiet_log()
    how = {"max_running": max_running, "prompt_rows": prompt_rows, "remember": False}
    with options.load(**how) as llm, progress_bar() as told:
        slowdown: tuple[float, ...] = ()
        if beside:
            check_memory(beside)
            others = Neighbours(str(options.folder), options.arguments | how, names[0])
            with others:
                slowdown = measured_slowdown(llm, names[0], others, beside, told)
        made = measured_costs(
            llm,
            names,
            prompt_rows,
            first_seconds=first_ms / 1000,
            start_seconds=start_seconds,
            told=told,
        )
        threads = get_num_threads()
        shared = shared_slowdown(slowdown, other_share / threads, cores() / threads)
        made = replace(made, slowdown=shared)
    write_costs(out, made)
    console().print(f"steps of {', '.join(names)}: {out}")
