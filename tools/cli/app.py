"""The command `fastslow`. Commands import what is heavy when they run: `--help` answers at once."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated

import typer
from loguru import logger

from fastslow.tools.cli.bench import bench
from fastslow.tools.cli.cache import cache
from fastslow.tools.cli.chat import chat
from fastslow.tools.cli.convert import convert
from fastslow.tools.cli.corpus import corpus
from fastslow.tools.cli.generate import generate
from fastslow.tools.cli.inspect import inspect
from fastslow.tools.cli.keys import keys
from fastslow.tools.cli.modes import modes
from fastslow.tools.cli.options import INTERRUPTED
from fastslow.tools.cli.plan import plan
from fastslow.tools.cli.quantize import quantize
from fastslow.tools.cli.serve import serve
from fastslow.tools.cli.simulate import simulate
from fastslow.tools.cli.train_draft import train_draft
from fastslow.tools.cli.tune import tune

app = typer.Typer(
    name="fastslow",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
JOBS = (generate, chat, serve, inspect, modes, convert, quantize, bench, tune, train_draft, plan)
for command in JOBS:
    app.command()(command)
app.add_typer(corpus)
app.add_typer(cache)
app.add_typer(keys)
app.add_typer(simulate)


def _version(wanted: bool) -> None:
    if wanted:
        import fastslow

        typer.echo(f"fastslow {fastslow.__version__}")
        raise typer.Exit()


@app.callback()
def _about(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Speculative decoding with fast and slow thinking, for grouped mixture-of-experts models.

    [bold]Quick start[/bold]

      fastslow generate "Why is the sky blue?"
      fastslow chat --mode fast
      fastslow serve smollm2-moge
      fastslow inspect path/to/checkpoint
      fastslow tune --prompts mine.jsonl

    A model is a checkpoint folder (config.json, safetensors, tokenizer), a GGUF file or a built-in name:
    smollm2-moge, made on first use from a 93 MB download, or smollm2, its dense original.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        arguments: without the program's name; None = those of the process.

    Exit codes: 0; 1 the engine or the system failed; 2 the input does not fit; 130 Ctrl-C.
    """
    _show_log()
    try:
        app(args=arguments, prog_name="fastslow")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except ValueError as error:
        _fail(error, 2)
    except (OSError, RuntimeError) as error:
        _fail(error, 1)


def _show_log() -> None:
    """The log is off in an application; what it warns of is then said once."""
    from fastslow.request.chat_warnings import FastslowWarning

    logger.enable("fastslow")
    warnings.simplefilter("ignore", FastslowWarning)


def _fail(error: Exception, code: int) -> None:
    from fastslow.tools.cli.screen import complain

    complain(error)
    sys.exit(code)
