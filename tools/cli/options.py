"""The options of the commands, every one once, as fields of dataclasses that the commands take."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, get_type_hints

import typer

if TYPE_CHECKING:
    from fastslow.engine.params import SamplingParams, Speculation
    from fastslow.llm import LLM
    from fastslow.tools.tune.candidates import Length

INTERRUPTED = 130  # the exit code after Ctrl-C: 128 + SIGINT, as shells count


PATHS = (  # arguments that are names or paths; those of type Path are known anyway
    *("model", "target", "source", "modes", "own", "auto", "draft_model"),
    *("speculation", "head", "corpus"),
)


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with one option for each field of its parameters that are dataclasses, and with `~`
    expanded in paths.

    Typer reads a function's parameters; it is shown the fields instead, with their types, helps
    and defaults, and the function gets the dataclasses made of what was given.
    """
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, type[Any]] = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if isinstance(parameter.annotation, type) and is_dataclass(parameter.annotation)
    }
    shown: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if name not in groups:
            shown.append(parameter)
            continue
        kinds = get_type_hints(groups[name], include_extras=True)  # inherited ones from their files
        whole = inspect.signature(groups[name]).parameters.values()
        shown += [field.replace(annotation=kinds[field.name]) for field in whole]

    @wraps(command)
    def run(**given: Any) -> None:
        given = {name: _at_home(name, value) for name, value in given.items()}
        made = {
            name: kind(**{field.name: given.pop(field.name) for field in fields(kind)})
            for name, kind in groups.items()
        }
        try:
            command(**given, **made)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None

    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in shown]
    run.__signature__ = signature.replace(parameters=keywords)  # type: ignore[attr-defined]
    run.__annotations__ = {}  # those of the fields count
    return run


def _at_home(name: str, value: Any) -> Any:
    """The value, with `~` expanded where it is a path: shells leave `--out=~/x` as it is."""
    if isinstance(value, list):
        return [_at_home(name, part) for part in value]
    if isinstance(value, Path):
        return value.expanduser()
    return os.path.expanduser(value) if name in PATHS and isinstance(value, str) else value


def option(help: str, panel: str | None = None, *names: str) -> Any:
    """An option whose help tells the default in words."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False)


def shown_option(
    help: str, panel: str | None = None, *, min: float | None = None, max: float | None = None
) -> Any:
    """An option whose default is shown; `min` and `max` bound a number."""
    return typer.Option(help=help, rich_help_panel=panel, min=min, max=max)


MODEL, TRIED, MEASURED, ROUTING = "Model", "What is tried", "How it is measured", "Routing"
PROMPTS = option("JSON lines, each with prompt, messages, turns or question.", None, "--prompts")


DType = Annotated[str, option("auto, bfloat16, float32 or float16.", MODEL)]
Quantization = Annotated[
    str, option("auto (a quantised one as it is), none, int8, int4 or w8a8.", MODEL)
]
Device = Annotated[str, option("auto, cpu, cuda or npu.", MODEL)]


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it is run."""

    model: Annotated[
        str, option("Checkpoint folder, GGUF file or built-in name; default smollm2-moge.", MODEL)
    ] = "smollm2-moge"
    dtype: DType = "auto"
    quantization: Quantization = "auto"
    device: Device = "auto"
    kv_memory: Annotated[
        str | None, option("Memory for keys and values, such as 2GiB; default: 0.3 of free.", MODEL)
    ] = None
    max_model_len: Annotated[
        int | None, option("Most tokens of prompt plus answer; default: all it can.", MODEL)
    ] = None

    @property
    def folder(self) -> Path:
        """The checkpoint's folder; a built-in model is made on first use."""
        from fastslow.models.locate import resolve_model

        return resolve_model(self.model)

    def load(self, **more: Any) -> LLM:
        """The model, loaded. more: further arguments of `LLM`."""
        from fastslow.llm import LLM

        return LLM(self.model, **self.arguments, **more)

    @property
    def arguments(self) -> dict[str, Any]:
        """Of `LLM`, but for the model."""
        names = ("dtype", "quantization", "device", "kv_memory", "max_model_len")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class MeasureOptions(ModelOptions):
    """What `bench` and `tune` try, and how they measure it."""

    drafters: Annotated[
        str | None, option("Such as ngram,self; default: all that need no further file.", TRIED)
    ] = None
    lengths: Annotated[
        str | None,
        option("Tokens drafted per step, such as 2,4,adaptive; default: a spread of them.", TRIED),
    ] = None
    draft_model: Annotated[
        str | None, option("Folder of the small model of drafter model.", TRIED)
    ] = None
    tokens: Annotated[
        int | None,
        option("Most tokens of an answer; default 128 (`tune --modes`: 512).", MEASURED),
    ] = None
    limit: Annotated[
        int | None, option("Take so many of the prompts, spread over the file.", MEASURED)
    ] = None
    temperature: Annotated[
        float | None, option("0 = always the likeliest token; default: the mode's own.", MEASURED)
    ] = None

    def sampling(self, tokens: int = 128) -> SamplingParams:
        """How all answers are sampled. tokens: most of them, where the command line does not say."""
        from fastslow.engine.params import SamplingParams

        most = tokens if self.tokens is None else self.tokens
        if self.temperature is None:
            return SamplingParams(max_tokens=most)
        return SamplingParams(max_tokens=most, temperature=self.temperature)

    def drafting(self) -> tuple[list[Speculation], Sequence[Length]]:
        """The drafters and lengths that are named. ValueError: one of them is out of range."""
        from fastslow.engine.params import Speculation
        from fastslow.tools.tune.candidates import LENGTHS, read_lengths

        lengths = LENGTHS if self.lengths is None else read_lengths(self.lengths)
        names = [] if self.drafters is None else listed("drafters", self.drafters)
        if self.draft_model is not None and self.drafters is None:
            names = ["model"]
        models = {n: self.draft_model if "model" in n.split("+") else None for n in names}
        return [Speculation(drafter=n, model=model) for n, model in models.items()], lengths

    def settings(self, llm: LLM) -> list[Speculation]:
        """What to try with a model, plain decoding left out. ValueError: nothing is left."""
        from fastslow.tools.tune.candidates import default_drafters, grid

        drafters, lengths = self.drafting()
        found = grid(drafters or default_drafters(llm), lengths)
        if not found:
            raise ValueError("drafters and lengths leave nothing but plain decoding to measure")
        return found


@dataclass(frozen=True)
class RoutingOptions:
    """What `inspect --routing` measures."""

    ranks: Annotated[int, shown_option("Ranks that share the experts.", ROUTING, min=1)] = 8
    prompts: Annotated[int, shown_option("Take so many prompts.", ROUTING, min=1)] = 32
    answer: Annotated[int, shown_option("Tokens to answer each with.", ROUTING, min=0)] = 64
    batch: Annotated[int, shown_option("Answers decoded in a step.", ROUTING, min=1)] = 16
    gate: Annotated[
        str | None,
        option("Experts x groups, as 64x8: random routers over the same inputs instead.", ROUTING),
    ] = None
    picture: Annotated[Path | None, option("HTML file to write.", ROUTING)] = None


def standard_input() -> TextIO:
    """Standard input. ValueError where whoever started this program closed it."""
    if sys.stdin is None or sys.stdin.closed:
        raise ValueError("standard input is closed: there is nothing to read")
    return sys.stdin


def listed(name: str, text: str) -> list[str]:
    """The parts of "a,b". ValueError if there is none."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ValueError(f"{name}={text!r} names nothing")
    return list(dict.fromkeys(parts))


def numbers(name: str, text: str) -> list[int]:
    """The whole numbers of "1,8", each at least 1. ValueError for anything else."""
    parts = listed(name, text)
    for part in parts:
        if not (part.isascii() and part.isdigit() and int(part) > 0):
            raise ValueError(f"{name}: {part!r} must be a whole number of at least 1")
    return list(dict.fromkeys(map(int, parts)))


def check_writable(path: Path) -> None:
    """ValueError if no file can be made there: better known now than after ten minutes."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"{str(path)!r} cannot be written: no such folder, or a folder itself")
    there = path if path.exists() else path.absolute().parent
    if not os.access(there, os.W_OK):
        raise ValueError(f"{str(path)!r} cannot be written: permission denied")
