"""Options of commands, made from the models that they fill: name, type, default and help come from the field."""

from __future__ import annotations

import inspect
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from fastslow.engine.checked import Params, sentence
from fastslow.serve.api.config import MODEL, ModelArguments
from fastslow.tools.job_options import field

if TYPE_CHECKING:
    from fastslow.llm import LLM

LOADED = ("dtype", "quantization", "device", "kv_memory", "max_model_len")
INTERRUPTED = 130  # the exit code after Ctrl-C: 128 + SIGINT, as shells count
SIMPLE = (bool, int, float, str, Path)
PLACED = "_placed"  # ends the name of an argument that stands for an option
PATHS = ("model", "own", "source", "target")  # arguments of type str that may be paths
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]
JsonLines = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


def command_group(name: str, help: str) -> typer.Typer:
    """A command that has commands."""
    return typer.Typer(name=name, help=help, no_args_is_help=True, rich_markup_mode="rich")


class OptionFields:
    """Fields of a model that become options: the metadata of an `Annotated` model. names: the fields; none = all.
    panel: of the help, for fields that name none. defaults: whether the help shows the fields' defaults. renamed:
    field -> name of the option, where the field's name is taken."""

    def __init__(
        self, *names: str, panel: str | None = None, defaults: bool = True, **renamed: str
    ) -> None:
        self.names = {name: name for name in names} | renamed
        self.panel = panel
        self.defaults = defaults

    def of(self, model: type[BaseModel]) -> Iterator[tuple[str, str, FieldInfo, Any]]:
        """Name, option and `FieldInfo` of each field, and the model that it nests or None."""
        for name, option in (self.names or {n: n for n in model.model_fields}).items():
            info = model.model_fields[name]
            yield name, option, info, _model_of(Annotated[info.annotation, *info.metadata, None])


ALL = OptionFields()


def options_of(model: type[BaseModel], which: OptionFields = ALL) -> list[inspect.Parameter]:
    """Parameters for typer for each field, those of nested models in place. A field's `description` is the help. Its
    `json_schema_extra` may have `panel` (of the help), `names` (such as `["--out", "-o"]`; a word such as `TARGET`
    among them: it may also be given by position) and `argument` (true: it is an argument, not an option)."""
    found: list[inspect.Parameter] = []
    for _, option, info, nested in which.of(model):
        found += options_of(*nested) if nested else _parameters(option, info, which)
    return found


def filled(model: type[Any], given: Mapping[str, Any], which: OptionFields = ALL) -> Any:
    """The model with what the command line gave; `model_fields_set` says which fields these are. ValueError: a
    value does not fit; one sentence."""
    values: dict[str, Any] = {}
    for name, option, _, nested in which.of(model):
        if nested:
            values[name] = filled(nested[0], given, nested[1])
        elif (value := _given(given, option)) not in (None, []):
            values[name] = value
    try:
        return model(**values)
    except ValidationError as error:
        raise ValueError(sentence(error, model.model_fields)) from None


def _given(given: Mapping[str, Any], option: str) -> Any:
    value, placed = given.get(option), given.get(option + PLACED)
    if value is not None and placed is not None:
        raise ValueError(f"{option.upper()} and --{option} are two: give one of them")
    return value if placed is None else placed


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of its parameters that are models, and with `~` expanded in paths. A parameter
    `options: ServerConfig` or `drafts: Annotated[Speculation, OptionFields("head")]` is shown to typer as one option
    for each field; the command gets the model that `filled` makes of them."""
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, tuple[type[Any], OptionFields]] = {}
    shown: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        found = _model_of(parameter.annotation)
        if found is not None:
            groups[name] = found
            shown += options_of(*found)
        else:
            shown.append(parameter)
    shown.sort(key=lambda p: p.name.endswith(PLACED))  # after arguments that have no other way
    parts = ((p.name, p.name.removesuffix(PLACED), p.annotation) for p in shown)
    paths = {name for name, own, hint in parts if own in PATHS or Path in _parts(hint)}

    @wraps(command)
    def run(**given: Any) -> None:
        from fastslow.output import FastslowWarning

        warnings.simplefilter("ignore", FastslowWarning)  # the log says it already
        given = {name: _at_home(v) if name in paths else v for name, v in given.items()}
        try:
            made = {name: filled(kind, given, which) for name, (kind, which) in groups.items()}
            own = {name: given[name] for name in signature.parameters if name not in groups}
            command(**own, **made)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None

    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in shown]
    run.__signature__ = signature.replace(parameters=keywords)  # type: ignore[attr-defined]
    run.__annotations__ = {}  # the signature's count
    return run


def _model_of(annotation: Any) -> tuple[type[BaseModel], OptionFields] | None:
    """The model, and which of its fields are options, that an annotation asks for."""
    which = ALL
    if get_origin(annotation) is Annotated:
        annotation, *metadata = get_args(annotation)
        which = next((part for part in metadata if isinstance(part, OptionFields)), ALL)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, which
    return None


def _parameters(name: str, info: FieldInfo, which: OptionFields) -> Iterator[inspect.Parameter]:
    extra: Mapping[str, Any] = info.json_schema_extra or {}  # type: ignore[assignment]
    parts = list(_parts(info.annotation))
    kinds = {part if isinstance(part, type) else type(part) for part in parts}
    kind = next((simple for simple in SIMPLE if simple in kinds), None)
    if kind is None:
        raise TypeError(f"field {name} of type {info.annotation} can be no option")
    hint: Any = list[kind] if list in kinds else kind  # type: ignore[valid-type]
    how: dict[str, Any] = {
        "help": _help(info, which.defaults),
        "rich_help_panel": extra.get("panel") or which.panel,
        "show_default": False,
    }
    if choices := [part for part in parts if isinstance(part, str)]:
        how["metavar"] = f"[{'|'.join(choices)}]"
    flag = f"--{name.replace('_', '-')}"
    if hint is bool and info.default is True:
        flag = f"{flag}/--no-{flag[2:]}"
    named = extra.get("names", [flag])
    placed = [word for word in named if word[0] != "-"]
    needed = info.is_required() and not placed
    if extra.get("argument"):
        made = {name: typer.Argument(**how)}
    else:
        made = {name: typer.Option(*(word for word in named if word[0] == "-"), **how)}
        if placed:
            there = {**how, "rich_help_panel": None, "metavar": placed[0]}
            made[name + PLACED] = typer.Argument(**there)
    hint = hint if needed else hint | None
    for own, option in made.items():
        yield inspect.Parameter(
            own,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if needed else None,
            annotation=Annotated[hint, option, Path] if Path in kinds else Annotated[hint, option],
        )


def _help(info: FieldInfo, defaults: bool) -> str:
    """The description as a sentence, with the default where it does not say that itself."""
    text = (info.description or "").removesuffix(".")
    if not text.partition(" ")[0].endswith(","):  # a list of values begins as they are written
        text = text[:1].upper() + text[1:]
    value = info.default
    plain = isinstance(value, str | int | float | Path) and not isinstance(value, bool)
    if defaults and plain and value != "" and "default" not in text.lower():
        text += f"; default {value}"
    return f"{text}."


def _parts(annotation: Any) -> Iterator[Any]:
    """The simple types of an annotation, the values of its literals, and `list` where several values fit."""
    origin = get_origin(annotation)
    if origin is None:
        yield annotation
    elif origin is Literal:
        yield from get_args(annotation)
    elif origin is Annotated:
        first, *metadata = get_args(annotation)
        yield from _parts(first)
        yield from (part for part in metadata if part is Path)
    else:
        if isinstance(origin, type) and issubclass(origin, Sequence):
            yield list
        for part in get_args(annotation):
            yield from _parts(part)


def _at_home(value: Any) -> Any:
    """The value, with `~` expanded: shells leave `--out=~/x` as it is."""
    if isinstance(value, list):
        return [_at_home(part) for part in value]
    if isinstance(value, Path):
        return value.expanduser()
    return os.path.expanduser(value) if isinstance(value, str) else value


class ModelOptions(Params):
    """Options of the model, and of how it is run: arguments of `LLM`."""

    model: str = field(
        "smollm2-moge",
        "checkpoint folder, GGUF file, built-in name or hub name (owner/name)",
        MODEL,
        names="MODEL --model",
    )
    options: Annotated[ModelArguments, OptionFields(*LOADED)] = ModelArguments()

    @property
    def folder(self) -> Path:
        """The checkpoint's folder; a built-in model is made on first use."""
        from fastslow.models.locate import resolve_model

        return resolve_model(self.model)

    def load(self, **more: Any) -> LLM:
        """The model, loaded. more: further arguments of `LLM`."""
        from fastslow.engine.backends.cpu.compiled.kernel_cache import prepare

        prepare(self.options.device)  # beside the import of torch
        from fastslow.llm import LLM

        return LLM(self.model, **self.arguments, **more)

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `LLM`: those that were given."""
        return self.options.model_dump(exclude_unset=True)


def heed_sigterm() -> None:
    """For commands that keep on Ctrl-C what they have: SIGTERM ends them as that does."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


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
