"""`fastslow bench`: drafters, lengths, batch sizes and modes, measured side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastslow.engine.cli import measuring as m
from fastslow.engine.cli import options as o

if TYPE_CHECKING:
    from rich.table import Table

    from fastslow.engine.tune.grid import Grid

INTERRUPTED = 130


def bench(
    prompts: m.Prompts,
    model: o.Model = "smollm2-moge",
    drafters: m.Drafters = None,
    lengths: m.Lengths = None,
    draft_model: m.DraftModel = None,
    batch: Annotated[
        str, typer.Option(help="Requests at a time, such as 1,8.", rich_help_panel=m.WHAT)
    ] = "1",
    modes: Annotated[
        str, typer.Option(help="Presets, such as deep,fast.", rich_help_panel=m.WHAT)
    ] = "deep",
    tokens: m.Tokens = 128,
    limit: m.Limit = None,
    repeat: Annotated[
        int, typer.Option(help="Times that everything is run.", rich_help_panel=m.HOW)
    ] = 3,
    temperature: m.Temperature = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Write all samples here, as JSON.", show_default=False),
    ] = None,
    dtype: o.DType = "auto",
    quantization: o.Quantization = "auto",
    device: o.Device = "auto",
    kv_memory: o.KVMemory = None,
    max_model_len: o.MaxModelLen = None,
) -> None:
    """Measure drafters against plain decoding on your prompts, side by side.

    Examples:
      fastslow bench --prompts mine.jsonl
      fastslow bench --prompts mine.jsonl --drafters ngram,self --lengths 2,4,8 --batch 1,8
      fastslow bench --prompts mine.jsonl --modes deep,fast --limit 20 -o figures.json

    All settings run on the same prompts in turns. Ctrl-C shows what there is until then.
    """
    wishes = m.Measuring(drafters, lengths, draft_model, tokens, temperature)
    sizes, names = m.numbers("batch", batch), m.listed("modes", modes)
    if out is not None:
        m.writable(out)
    asked = m.prompts_for(prompts, limit)
    from fastslow.engine.cli.screen import console, quiet_log
    from fastslow.engine.llm import LLM
    from fastslow.engine.tune.grid import Grid
    from fastslow.engine.tune.runner import Runner

    quiet_log()
    stopped = False
    with LLM(
        model,
        dtype=dtype,
        quantization=quantization,
        device=device,
        kv_memory=kv_memory,
        max_model_len=max_model_len,
        max_running=max(sizes),
        remember=False,  # else each prompt would be drafted from its own answer
    ) as llm:
        grid = Grid(wishes.settings(llm), sizes, names)
        try:
            grid.measure(Runner(llm, wishes.sampling), asked, repeat)
        except KeyboardInterrupt:
            if not any(grid.samples.values()):
                raise
            stopped = True
    console().print(_table(grid))
    if out is not None:
        facts = {"model": model, "prompts": len(asked), "tokens": tokens, "stopped": stopped}
        out.write_text(json.dumps(_record(grid, facts), indent=1), "utf-8")
        console().print(f"samples in {out}", style="dim")
    if stopped:
        raise typer.Exit(INTERRUPTED)


def _record(grid: Grid, facts: dict[str, Any]) -> dict[str, Any]:
    from fastslow.engine.tune.machine import circumstances

    return {**circumstances(), **facts, "cells": grid.record()}


def _table(grid: Grid) -> Table:
    from rich.table import Table

    from fastslow.engine.tune.candidates import family, is_plain, length_of
    from fastslow.engine.tune.sample import accepted_share, rate, tokens_per_step

    table = Table("mode", "batch", "drafter", "length")
    for title in ("tokens/s", "x plain", "per step", "accepted"):
        table.add_column(title, justify="right")
    before = None
    for cell, samples in grid.samples.items():
        if not samples:
            continue
        if before not in (None, cell[1:]):
            table.add_section()
        before = cell[1:]
        ratio, share = grid.ratio(cell), accepted_share(samples)
        table.add_row(
            cell.mode,
            str(cell.batch),
            family(cell.setting),
            "" if is_plain(cell.setting) else length_of(cell.setting),
            f"{rate(samples):.1f}",
            "-" if ratio is None else f"{ratio:.2f}",
            f"{tokens_per_step(samples):.2f}",
            "-" if share is None else f"{share:.0%}",
        )
    return table
