"""Output that people see: on standard output what was asked for, on standard error all else: thoughts (dimmed),
one line of figures, errors in one line."""

from __future__ import annotations

import json
import os
import sys
from functools import cache
from typing import TYPE_CHECKING

from loguru import logger
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # which imports numpy
    from fastslow.output import Completion, Output, Piece

WIDE = 10_000  # characters, more than any table has
PIPED = 160  # that a table may take where it is no terminal's, and nobody says how many


@cache
def console() -> Console:
    """Standard output."""
    return Console(highlight=False, soft_wrap=True, emoji=False, markup=False)


@cache
def errors() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False, soft_wrap=True, emoji=False, markup=False)


def show(table: Table) -> None:
    """Print a table in which nothing is cut: one that is too wide loses its lines, then it wraps."""
    out = console()
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out = Console(highlight=False, emoji=False, markup=False, width=PIPED)
    for column in table.columns:
        column.overflow = "fold"
    if Measurement.get(out, out.options.update(max_width=WIDE), table).maximum > out.width:
        table.box, table.pad_edge = box.SIMPLE_HEAD, False
    out.print(table, soft_wrap=False)


def write_json(record: object) -> None:
    """Write one line of JSON on standard output."""
    console().out(json.dumps(record, ensure_ascii=False), highlight=False)


def quiet_log() -> None:
    """The engine's log as plain lines on standard error: a reader of answers needs no timestamps."""
    logger.enable("fastslow")
    logger.remove()
    logger.add(_log, level="INFO", format="{message}")


def _log(line: str) -> None:
    sys.stderr.write(line)  # looked up each time: it may have been replaced


def complain(error: Exception) -> None:
    """Write one line about an error on standard error."""
    message = " ".join(str(error).split()) or type(error).__name__
    errors().print(Text.assemble(("error: ", "bold red"), message))


def figures(answer: Output | Completion, context: int) -> str:
    """Return the figures of an answer in one line. context: most tokens of a prompt and its answer."""
    metrics = answer.metrics
    counts = {"groups": metrics.groups, "experts": metrics.experts}
    ran = "".join(f" | {count} {name}" for name, count in counts.items() if count is not None)
    why = f" | why: {metrics.decision}" if metrics.decision else ""
    ended = f" ({metrics.thinking_ended})" if metrics.thinking_ended else ""
    thought = f" | {metrics.thinking_tokens} tokens of thought{ended}" if ended else ""
    return (
        f"mode {metrics.mode} | drafter {metrics.drafter} | drafted {metrics.drafted} | "
        f"accepted {metrics.accepted} | {metrics.tokens_per_step:.2f} tokens/step | "
        f"{metrics.tokens_per_second:.1f} tokens/s{ran}{thought}{_cut(answer, context)}{why}"
    )


def _cut(answer: Output | Completion, context: int) -> str:
    """Return what cut an answer off, for its line of figures; "" where it came to its own end."""
    if answer.finish_reason == "length":
        whole = answer.metrics.prompt_tokens + answer.metrics.tokens
        return " | cut by the context" if whole >= context else " | cut at max_tokens"
    return " | timeout" if answer.finish_reason == "timeout" else ""


class StreamedAnswer:
    """Prints the pieces of one answer, and keeps all that has come as `text` and `reasoning`. answer, thought: where
    they go; None = nowhere."""

    def __init__(self, answer: Console | None, thought: Console | None) -> None:
        self.text = ""
        self.reasoning = ""
        self.token_ids: list[int] = []
        self._answer, self._thought = answer, thought
        self._open: Console | None = None  # where a line has begun and not ended

    def add(self, piece: Piece) -> None:
        """Take a piece; a thought is dim, and an empty line parts it from the answer."""
        self.token_ids += piece.token_ids
        self.reasoning += piece.reasoning
        self._print(self._thought, piece.reasoning, "dim")
        if piece.text and self.reasoning and not self.text:
            self.end()
            self._print(self._thought, "\n")
        self.text += piece.text
        self._print(self._answer, piece.text)

    def end(self) -> None:
        """Go to the start of a line."""
        self._print(self._open, "\n")

    def _print(self, where: Console | None, text: str, style: str | None = None) -> None:
        if text and where is not None:
            self._open = None if text[-1] == "\n" else where  # first: a Ctrl-C may come between
            # Not Console.print: an answer is no markup, and wraps where the terminal does.
            where.out(text, style=style, highlight=False, end="")
