"""What every benchmark needs: common options, models by format, turns, medians, tables, the JSON file."""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import probe
from rich.console import Console
from rich.table import Table

from fastslow import LLM, Output
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.text.templates import load_template
from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.tools.prompts import Conversation, read_prompts

Row = dict[str, Any]  # what is measured, and its "samples"
Samples = Sequence[Mapping[str, Any]]
ENOUGH = 3  # uncontended samples that make a median
OPTIONS: dict[str, dict[str, Any]] = {
    "model": {"default": "smollm2", "help": "a folder or a built-in name"},
    "formats": {"default": "bfloat16,int8,int4", "help": "of the weights, or auto"},
    "dtype": {"help": "of the weights, or auto"},
    "quantization": {"help": "none, int8, int4 or auto"},
    "head": {"type": Path, "help": "the head's file, if not the model's own"},
    "prompts": {"type": Path, "nargs": "+", "required": True, "metavar": "FILE.jsonl"},
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


def numbers(text: str) -> list[int]:
    """The numbers of an option such as 1,2,4."""
    return [int(part) for part in text.split(",") if part]


def prompts_of(files: Sequence[Path], count: int) -> list[Conversation]:
    """So many prompts, one of each file in turn."""
    turns = itertools.zip_longest(*(read_prompts(file) for file in files))
    found = (prompt for turn in turns for prompt in turn if prompt is not None)
    return list(itertools.islice(found, count))


def chat_encoder(folder: Path) -> Callable[..., list[int]]:
    """Token ids of a conversation, put through the chat template; and how it is to think, if asked for."""
    tokenizer, config = load_tokenizer(folder), ModelConfig.from_folder(folder)
    template = load_template(folder, tokenizer, config.architecture)
    return lambda *asked: tokenizer.encode(template.render(*asked), template.add_special)


def console() -> Console:
    """As wide as the terminal; 150 columns where the output goes to a file."""
    return Console(width=None if sys.stdout.isatty() else 150, highlight=False)


def show(
    titles: Sequence[str], rows: Iterable[Sequence[str]], *notes: str, title: str = ""
) -> None:
    """Print a table, the notes below it."""
    table = Table(*titles, title=title or None)
    for row in rows:
        table.add_row(*row)
    printer = console()
    if table.row_count:
        printer.print(table)
    for note in notes:
        printer.print(note)


def write(out: Path | None, **figures: Any) -> None:
    """Write the figures, if a file is asked for, with what they were measured under."""
    if out is not None:
        whole = {**probe.header(), **figures}
        out.write_text(json.dumps(whole, indent=1, default=str), "utf-8")


def options_of(format: str) -> dict[str, Any]:
    """Arguments of `LLM` for a dtype, a quantization or "auto"; "+kv8" after it keeps keys and values in int8."""
    if format.endswith("+kv8"):
        return {**options_of(format.removesuffix("+kv8")), "kv_dtype": "int8"}
    if format in ("int8", "int4"):
        return {"quantization": format}
    return {} if format == "auto" else {"dtype": format}


def open_formats(args: argparse.Namespace, stack: ExitStack) -> dict[str, LLM]:
    """The model in each of `--formats`; FORMAT@FOLDER is another model. What does not load is left out, and the
    reason is printed."""
    models: dict[str, LLM] = {}
    for format in args.formats.split(","):
        own, _, other = format.partition("@")
        try:
            models[format] = stack.enter_context(LLM(other or args.model, **options_of(own)))
        except ValueError as error:
            console().print(f"{format} is left out: {error}")
    return models


def take_turns(
    args: argparse.Namespace,
    rows: list[Row],
    warm_up: Callable[[Row], object],
    sample: Callable[[Row], dict[str, Any]],
) -> None:
    """Warm up each row, then sample all of them `--repeat` times, in an order that moves on.

    Samples are added to the rows, and after each turn the rows are written to `--out`.
    """
    for row in rows:
        warm_up(row)
    for turn in range(args.repeat):
        first = turn % len(rows)
        for row in rows[first:] + rows[:first]:
            row["samples"].append({"turn": turn, **sample(row)})
        write(args.out, model=args.model, rows=rows)


def fair(samples: Samples) -> tuple[Samples, bool]:
    """The uncontended samples, if there are enough of them; else all. And: any contended ones?"""
    clean = [sample for sample in samples if not sample["contended"]]
    return (clean, False) if len(clean) >= ENOUGH else (samples, len(clean) < len(samples))


def middle(samples: Samples, key: str = "rate", digits: int | None = None) -> str:
    """Their median; "~" in front says that it holds contended samples, and n how many are in it."""
    if not samples:
        return "-"
    chosen, contended = fair(samples)
    value = statistics.median(sample[key] for sample in chosen)
    places = digits if digits is not None else 0 if value >= 100 else 1
    return f"{'~' if contended else ''}{value:.{places}f} (n={len(chosen)})"


def seconds_of(outputs: Sequence[Output]) -> float:
    """From the first token of answers that were asked for at once to the last."""
    metrics = [output.metrics for output in outputs]
    ends = [m.ttft + m.tpot * (m.tokens - 1) for m in metrics]
    return max(ends) - min(m.ttft for m in metrics)


def percentiles(values: Iterable[float]) -> list[float]:
    """The 50th, the 95th and the 99th."""
    ranked = sorted(values) or [float("nan")]
    return [
        statistics.median(ranked),
        *(ranked[max(0, -(-p * len(ranked) // 100) - 1)] for p in (95, 99)),
    ]
