"""The command `fastslow`. A command's module is imported when it is called: `--help` answers at once."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from loguru import logger
from safetensors import SafetensorError
from typer.core import TyperCommand, TyperGroup

CLI = "fastslow.tools.cli"
COMMANDS = {  # name -> where it is, and its line of help
    "generate": ("answering.generate", "Answer one prompt, or a file of prompts as JSON lines."),
    "chat": ("answering.chat", "Talk to a model; /fast and /deep change how it thinks."),
    "serve": ("serve", "Serve a model over HTTP, for clients of OpenAI and Anthropic."),
    "keys": ("keys", "Make, list and remove API keys of the server."),
    "models": ("checkpoints.models", "List the models that are here, and what else would fit."),
    "modes": ("checkpoints.inspect", "Say what each mode of a model means."),
    "inspect": ("checkpoints.inspect", "Show a checkpoint: parameters, memory, tokenizer, modes."),
    "quantize": ("checkpoints.quantize", "Make a W8A8 checkpoint, and say what that changes."),
    "doctor": ("doctor", "Say what this machine runs models with, and what is missing."),
    "cache": ("checkpoints.cache", "List and remove packed weights."),
    "plan": ("checkpoints.plan", "Plan batch, draft length and memory on other devices."),
    "bench": ("drafting.bench", "Measure drafters against plain decoding on your prompts."),
    "tune": ("drafting.tune", "Find the drafter, the modes or the groups for your prompts."),
    "train-draft": ("drafting.train_draft", "Train a draft head for a model."),
    "corpus": ("drafting.corpus", "Build a corpus of answers, from which suffix drafts copy."),
}

BEGIN = """\
fastslow chat          talk to the built-in model, which is fetched once (93 MB)
fastslow models        see which models are here, and which others would fit
fastslow serve MODEL   serve a model to clients of OpenAI and Anthropic
fastslow doctor        see what models run with on this machine
fastslow --help        see all commands"""


class LateCommand(TyperCommand):
    """Stands for a command whose module is not imported yet."""

    def __init__(self, name: str, module: str, help: str) -> None:
        super().__init__(name, help=help)
        self._module = module

    def make_context(self, *arguments: Any, **more: Any) -> Any:
        return self.real().make_context(*arguments, **more)

    def real(self) -> Any:
        """The command itself."""
        found = getattr(import_module(f"{CLI}.{self._module}"), str(self.name).replace("-", "_"))
        if not isinstance(found, typer.Typer):
            alone = typer.Typer(add_completion=False, rich_markup_mode="rich")
            alone.command(self.name)(found)
            found = alone
        command = typer.main.get_command(found)
        command.name = self.name
        return command


class LateGroup(TyperGroup):
    """The group of all commands."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        for name, (module, help) in COMMANDS.items():
            self.add_command(LateCommand(name, module, help))


app = typer.Typer(
    name="fastslow",
    cls=LateGroup,
    invoke_without_command=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        import fastslow

        typer.echo(f"fastslow {fastslow.__version__}")
        raise typer.Exit()


@app.callback()
def _about(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Speculative decoding with fast and slow thinking, for grouped mixture-of-experts models.

    [bold]Quick start[/bold]

      fastslow generate "Why is the sky blue?"
      fastslow chat --mode fast
      fastslow chat Qwen/Qwen3-0.6B
      fastslow serve smollm2-moge
      fastslow inspect path/to/checkpoint
      fastslow tune --prompts mine.jsonl

    A model is a checkpoint folder (config.json, safetensors, tokenizer), a GGUF file, a hub's name
    (owner/name, owner/name@revision, or owner/name:Q4_K_M for a GGUF file of it), or a built-in name:
    smollm2-moge, made on first use from a 93 MB download, or smollm2, its dense original.
    """
    if context.invoked_subcommand is None:
        typer.echo(BEGIN)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit. arguments: without the program's name; None = those of the process.

    Exit codes: 0; 1 the engine or the system failed; 2 the input does not fit; 130 Ctrl-C.
    """
    logger.enable("fastslow")  # it is off in an application
    try:
        app(args=arguments, prog_name="fastslow")
    except KeyboardInterrupt:
        sys.exit(130)
    except ValueError as error:
        _fail(error, 2)
    except (ImportError, MemoryError, SystemError) as error:  # as of torch without room for it
        said = str(error) or type(error).__name__
        _fail(OSError(f"{said}: there is not enough memory, or fastslow is not whole"), 1)
    except (OSError, RuntimeError, SafetensorError) as error:
        _fail(error, 1)


def _fail(error: Exception, code: int) -> None:
    from fastslow.tools.cli.screen import complain

    complain(error)
    sys.exit(code)
