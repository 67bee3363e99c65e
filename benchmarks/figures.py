"""The figures of a benchmark: common options, models in several formats, turns, and the JSON file."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import probe
from peer.formats import options_of
from rich.console import Console
from rich.table import Table

from fastslow import LLM
from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.model.base import Model
from fastslow.tools.prompts import Conversation, read_prompts

Row = dict[str, Any]  # a cell of the table, and its "samples"
OPTIONS: dict[str, dict[str, Any]] = {
    "model": {"default": "smollm2", "help": "a folder or a built-in name"},
    "formats": {"default": "bfloat16,int8,int4", "help": "of the weights"},
    "dtype": {"help": "of the weights, or auto"},
    "quantization": {"help": "none, int8, int4 or auto"},
    "head": {"type": Path, "help": "the head's file, if not the model's own"},
    "prompts": {"type": Path, "nargs": "+", "required": True, "metavar": "FILE.jsonl"},
    "rows": {"type": int, "nargs": "+", "help": "rows of a step"},
    "limit": {"type": int, "help": "prompts of each set"},
    "tokens": {"type": int, "help": "of each answer"},
    "threads": {"type": int, "default": probe.physical_cores()},
    "repeat": {"type": int, "help": "turns that count"},
    "seconds": {"type": float, "default": 1.0, "help": "least length of a sample"},
    "out": {"type": Path, "help": "JSON file of all figures"},
}


def options(doc: str | None, *names: str, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with some of the common options, those of `defaults` with other defaults."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in (*names, *defaults):
        fields = OPTIONS[name] | ({"default": defaults[name]} if name in defaults else {})
        parser.add_argument(*(["-o"] if name == "out" else []), f"--{name}", **fields)
    return parser


def prompts_of(files: Sequence[Path], count: int) -> list[Conversation]:
    """So many prompts, one of each file in turn."""
    turns = itertools.zip_longest(*(read_prompts(file) for file in files))
    found = (prompt for turn in turns for prompt in turn if prompt is not None)
    return list(itertools.islice(found, count))


def console(width: int = 150) -> Console:
    """As wide as the terminal; so many columns where the output goes to a file."""
    return Console(width=None if sys.stdout.isatty() else width)


def write(out: Path, threads: int, **figures: Any) -> None:
    """Write the figures, with what they were measured under."""
    whole = {**probe.header(threads), **figures}
    out.write_text(json.dumps(whole, indent=1, default=str), "utf-8")


def open_formats(args: argparse.Namespace, stack: ExitStack) -> dict[str, LLM]:
    """The model in each of `--formats`; FORMAT@FOLDER is another model. What does not load is left
    out, and the reason is printed."""
    models: dict[str, LLM] = {}
    for format in args.formats.split(","):
        own, _, other = format.partition("@")
        try:
            models[format] = stack.enter_context(LLM(other or args.model, **options_of(own)))
        except ValueError as error:
            console().print(f"{format} is left out: {error}", highlight=False)
    return models


def take_turns(
    args: argparse.Namespace,
    rows: list[Row],
    warm_up: Callable[[Row], object],
    sample: Callable[[Row], dict[str, Any]],
) -> None:
    """Warm up each cell, then sample all of them `--repeat` times, in an order that moves on.

    Samples are added to the rows, and after each turn the rows are written to `--out`.
    """
    for row in rows:
        warm_up(row)
    for turn in range(args.repeat):
        first = turn % len(rows)
        for row in rows[first:] + rows[:first]:
            row["samples"].append({"turn": turn, **sample(row)})
        write(args.out, args.threads, model=args.model, rows=rows)


def tell(args: argparse.Namespace, table: Table) -> None:
    """Print the medians of turns."""
    printer = console()
    printer.print(table)
    printer.print(f"{args.threads} threads; ~ marks contended medians; samples in {args.out}")


def on_kernels(model: Model) -> CpuDecoder:
    """The model as the CPU kernels run it; ends the program where they do not."""
    if not isinstance(model, CpuDecoder):
        sys.exit("bytes and parts are counted by the CPU kernels, which do not run here")
    return model
