"""What people see: answers as they come, thoughts dimmed, one line of figures, errors in one line."""

from __future__ import annotations

import sys
from functools import cache

from loguru import logger
from rich.console import Console
from rich.text import Text

from fastslow.output import Metrics, Piece


@cache
def console() -> Console:
    """Standard output."""
    return Console(highlight=False, soft_wrap=True, emoji=False, markup=False)


@cache
def errors() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False, soft_wrap=True, emoji=False, markup=False)


def quiet_log() -> None:
    """The engine's log as plain lines on standard error: a reader of answers needs no timestamps."""
    logger.remove()
    logger.add(_log, level="INFO", format="{message}")


def _log(line: str) -> None:
    sys.stderr.write(line)  # looked up each time: it may have been replaced


def complain(error: Exception) -> None:
    """One line about what went wrong, on standard error."""
    message = " ".join(str(error).split()) or type(error).__name__
    errors().print(Text.assemble(("error: ", "bold red"), message))


def figures(metrics: Metrics) -> str:
    """How an answer came about, in one line."""
    ended = f" ({metrics.thinking_ended})" if metrics.thinking_ended else ""
    thought = f" | {metrics.thinking_tokens} tokens of thought{ended}" if ended else ""
    return (
        f"mode {metrics.mode} | drafter {metrics.drafter} | drafted {metrics.drafted} | "
        f"accepted {metrics.accepted} | {metrics.tokens_per_step:.2f} tokens/step | "
        f"{metrics.tokens_per_second:.1f} tokens/s{thought}"
    )


class StreamedAnswer:
    """Prints the pieces of one answer and keeps them.

    Attributes:
        text, reasoning: all that has come so far.
    """

    def __init__(self, shown: bool = True) -> None:
        self.text = ""
        self.reasoning = ""
        self.token_ids: list[int] = []
        self._shown = shown
        self._last = "\n"  # nothing printed yet: the cursor is at the start of a line

    def add(self, piece: Piece) -> None:
        """Take a piece; a thought is dim, and an empty line parts it from the answer."""
        self.token_ids += piece.token_ids
        self.reasoning += piece.reasoning
        self._print(piece.reasoning, "dim")
        if piece.text and self.reasoning and not self.text:
            self.end()
            self._print("\n", None)
        self.text += piece.text
        self._print(piece.text, None)

    def end(self) -> None:
        """Go to the start of a line."""
        if self._last != "\n":
            self._print("\n", None)

    def _print(self, text: str, style: str | None) -> None:
        if text and self._shown:
            self._last = text[-1]  # first: a Ctrl-C may come between
            # Not Console.print: an answer is no markup, and wraps where the terminal does.
            console().out(text, style=style, highlight=False, end="")
