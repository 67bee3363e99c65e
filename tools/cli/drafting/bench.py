"""`fastslow bench`: drafters, lengths, batch sizes and modes, measured side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastslow.draft.registry import split_names
from fastslow.engine.params import SamplingParams, Speculation
from fastslow.tools.cli.options import (
    ModelOptions,
    check_writable,
    expand_options,
    heed_sigterm,
    listed,
    numbers,
)
from fastslow.tools.job_options import PROMPTS, field

if TYPE_CHECKING:
    from rich.table import Table

    from fastslow.llm import LLM
    from fastslow.tools.tune.candidates import Length
    from fastslow.tools.tune.runner import Grid

TRIED, MEASURED = "What is tried", "How it is measured"


class MeasureOptions(ModelOptions):
    """Options of what `bench` and `tune` try, and how they measure it."""

    drafters: str | None = field(
        None, "such as ngram,self; default: all that need no further file", TRIED
    )
    lengths: str | None = field(
        None, "tokens drafted per step, such as 2,4,adaptive; default: a spread of them", TRIED
    )
    draft_model: str | Path | None = field(
        None, "folder of the small model of drafter model", TRIED
    )
    tokens: int | None = field(
        None, "most tokens of an answer; default 128 (`tune --modes`: 512)", MEASURED
    )
    limit: int | None = field(None, "take this many of the prompts, spread over the file", MEASURED)
    temperature: float | None = field(
        None, "0 = always the likeliest token; default: the mode's own", MEASURED
    )

    def sampling(self, tokens: int = 128) -> SamplingParams:
        """Return the sampling of all answers. tokens: most of them, where the command line does not say."""
        most = tokens if self.tokens is None else self.tokens
        if self.temperature is None:
            return SamplingParams(max_tokens=most)
        return SamplingParams(max_tokens=most, temperature=self.temperature)

    def drafting(self) -> tuple[list[Speculation], Sequence[Length]]:
        """The drafters and lengths that are named. ValueError: one of them is out of range."""
        from fastslow.tools.tune.candidates import LENGTHS, read_lengths

        lengths = LENGTHS if self.lengths is None else read_lengths(self.lengths)
        names = [] if self.drafters is None else listed("drafters", self.drafters)
        if self.draft_model is not None and self.drafters is None:
            names = ["model"]
        models = {n: self.draft_model if "model" in split_names(n) else None for n in names}
        return [Speculation(drafter=n, model=model) for n, model in models.items()], lengths

    def settings(self, llm: LLM) -> list[Speculation]:
        """Return the settings to try with a model, plain decoding left out. ValueError: nothing is left."""
        from fastslow.tools.tune.candidates import default_drafters, grid

        drafters, lengths = self.drafting()
        found = grid(drafters or default_drafters(llm), lengths)
        if not found:
            raise ValueError("drafters and lengths leave nothing but plain decoding to measure")
        return found


class BenchOptions(MeasureOptions):
    """Options of `bench`: what is measured, and on which prompts."""

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

    All settings run on the same prompts in turns. Ctrl-C or SIGTERM shows what there is until then.
    """
    heed_sigterm()
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
