"""`fastslow bench`: drafters, lengths, batch sizes and modes, measured side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from fastslow.tools.cli.drafting.measure_options import MEASURED, TRIED, MeasureOptions
from fastslow.tools.cli.options import (
    PROMPTS,
    check_writable,
    expand_options,
    field,
    listed,
    numbers,
)

if TYPE_CHECKING:
    from rich.table import Table

    from fastslow.tools.tune.runner import Grid


class BenchOptions(MeasureOptions):
    """What is measured, and on what."""

    prompts: Path = field(..., PROMPTS)
    batch: str = field("1", "requests at a time, such as 1,8", TRIED)
    modes: str = field("deep", "presets, such as deep,fast", TRIED)
    repeat: int = field(3, "times that everything is run", MEASURED, ge=1)
    out: Path | None = field(None, "JSON file for all samples", names="-o --out")


@expand_options
def bench(options: BenchOptions) -> None:
    """Measure drafters against plain decoding on your prompts, side by side.

    Examples:
      fastslow bench --prompts mine.jsonl
      fastslow bench --prompts mine.jsonl --drafters ngram,self --lengths 2,4,8 --batch 1,8
      fastslow bench --prompts mine.jsonl --modes deep,fast --limit 20 -o figures.json

    All settings run on the same prompts in turns. Ctrl-C shows what there is until then.
    """
    sampling, _ = options.sampling(), options.drafting()  # what does not fit is known now
    sizes, names = numbers("batch", options.batch), listed("modes", options.modes)
    out = options.out
    if out is not None:
        check_writable(out)
    from fastslow.tools.cli.screen import console, quiet_log, show
    from fastslow.tools.machine import circumstances
    from fastslow.tools.prompts import read_prompts
    from fastslow.tools.tune.runner import Grid, TuneRunner

    asked = read_prompts(options.prompts, options.limit)
    quiet_log()
    stopped = False
    # remember: else each prompt would be drafted from its own answer
    with options.load(max_running=max(sizes), remember=False) as llm:
        grid = Grid(options.settings(llm), sizes, names)
        try:
            grid.measure(TuneRunner(llm, sampling), asked, options.repeat)
        except KeyboardInterrupt:
            if not any(grid.samples.values()):
                raise
            stopped = True
    show(_table(grid))
    if out is not None:
        facts = {"model": options.model, "prompts": len(asked), "tokens": sampling.max_tokens}
        record = {**circumstances(), **facts, "stopped": stopped, "cells": grid.record()}
        out.write_text(json.dumps(record, indent=1), "utf-8")
        console().print(f"samples in {out}", style="dim")
    if stopped:
        raise KeyboardInterrupt


def _table(grid: Grid) -> Table:
    from rich.table import Column, Table

    from fastslow.tools.tune.candidates import family, is_plain, length_of
    from fastslow.tools.tune.sample import accepted_share, rate, tokens_per_step

    mode, drafter = Column("mode", no_wrap=True), Column("drafter", no_wrap=True)
    table = Table(mode, "batch", drafter, "length")
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
