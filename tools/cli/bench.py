"""`fastslow bench`: drafters, lengths, batch sizes and modes, measured side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastslow.tools.cli import measuring, options

if TYPE_CHECKING:
    from rich.table import Table

    from fastslow.tools.tune.grid import Grid

INTERRUPTED = 130


def bench(
    prompts: measuring.Prompts,
    model: options.Model = "smollm2-moge",
    drafters: measuring.Drafters = None,
    lengths: measuring.Lengths = None,
    draft_model: measuring.DraftModel = None,
    batch: Annotated[
        str, typer.Option(help="Requests at a time, such as 1,8.", rich_help_panel=measuring.WHAT)
    ] = "1",
    modes: Annotated[
        str, typer.Option(help="Presets, such as deep,fast.", rich_help_panel=measuring.WHAT)
    ] = "deep",
    tokens: measuring.Tokens = 128,
    limit: measuring.Limit = None,
    repeat: Annotated[
        int, typer.Option(help="Times that everything is run.", rich_help_panel=measuring.HOW)
    ] = 3,
    temperature: measuring.Temperature = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Write all samples here, as JSON.", show_default=False),
    ] = None,
    dtype: options.DType = "auto",
    quantization: options.Quantization = "auto",
    device: options.Device = "auto",
    kv_memory: options.KVMemory = None,
    max_model_len: options.MaxModelLen = None,
) -> None:
    """Measure drafters against plain decoding on your prompts, side by side.

    Examples:
      fastslow bench --prompts mine.jsonl
      fastslow bench --prompts mine.jsonl --drafters ngram,self --lengths 2,4,8 --batch 1,8
      fastslow bench --prompts mine.jsonl --modes deep,fast --limit 20 -o figures.json

    All settings run on the same prompts in turns. Ctrl-C shows what there is until then.
    """
    wishes = measuring.Measuring(drafters, lengths, draft_model, tokens, temperature)
    sizes, names = measuring.numbers("batch", batch), measuring.listed("modes", modes)
    if out is not None:
        measuring.writable(out)
    asked = measuring.prompts_for(prompts, limit)
    from fastslow.llm import LLM
    from fastslow.tools.cli.screen import console, quiet_log
    from fastslow.tools.tune.grid import Grid
    from fastslow.tools.tune.runner import TuneRunner

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
            grid.measure(TuneRunner(llm, wishes.sampling), asked, repeat)
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
    from fastslow.tools.machine import circumstances

    return {**circumstances(), **facts, "cells": grid.record()}


def _table(grid: Grid) -> Table:
    from rich.table import Table

    from fastslow.tools.tune.candidates import family, is_plain, length_of
    from fastslow.tools.tune.sample import accepted_share, rate, tokens_per_step

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
