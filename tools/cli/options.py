"""The options of the commands, every one once, as fields of dataclasses that the commands take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fastslow.engine.params import Mode, SamplingParams, Speculation
    from fastslow.llm import LLM
    from fastslow.tools.tune.candidates import Length

INTERRUPTED = 130  # the exit code after Ctrl-C: 128 + SIGINT, as shells count


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with one option for each field of its parameters that are dataclasses.

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
        whole = inspect.signature(groups[name], eval_str=True) if name in groups else None
        shown += [parameter] if whole is None else whole.parameters.values()

    @wraps(command)
    def run(**given: Any) -> None:
        made = {
            name: kind(**{field.name: given.pop(field.name) for field in fields(kind)})
            for name, kind in groups.items()
        }
        command(**given, **made)

    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in shown]
    run.__signature__ = signature.replace(parameters=keywords)  # type: ignore[attr-defined]
    run.__annotations__ = {}  # those of the fields count
    return run


def option(help: str, panel: str | None = None, *names: str) -> Any:
    """An option whose help tells the default in words."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False)


def shown_option(
    help: str, panel: str | None = None, *, min: float | None = None, max: float | None = None
) -> Any:
    """An option whose default is shown; `min` and `max` bound a number."""
    return typer.Option(help=help, rich_help_panel=panel, min=min, max=max)


MODEL, HOW, DRAW = "Model", "Thinking and speculation", "Sampling (default: the mode's own)"
TRIED, MEASURED, ROUTING = "What is tried", "How it is measured", "Routing"
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
        str, option("Checkpoint folder or built-in name; default smollm2-moge.", MODEL)
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

    def load(self, **more: Any) -> LLM:
        """The model, loaded. more: further arguments of `LLM`."""
        from fastslow.llm import LLM

        names = ("dtype", "quantization", "device", "kv_memory", "max_model_len")
        return LLM(self.model, **{name: getattr(self, name) for name in names}, **more)


SAMPLING = (
    *("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
    *("seed", "stop"),
)  # fields of the same names
MODE = ("groups", "thinking", "thinking_budget")  # of the mode, if given
SPECULATION = {"nodes": "nodes", "draft_model": "model", "draft_groups": "groups"}


@dataclass(frozen=True)
class AnswerOptions(ModelOptions):
    """How `generate` and `chat` answer; checked as far as that goes without a model.

    Raises:
        ValueError: an option is out of range.
    """

    mode: Annotated[str, option("deep, fast or another preset: see `fastslow modes`.", HOW)] = (
        "deep"
    )
    modes: Annotated[str | None, option("JSON file with presets of your own.", HOW)] = None
    auto: Annotated[
        str | None, option("File of `fastslow tune --modes`, which --mode auto then goes by.", HOW)
    ] = None
    groups: Annotated[
        int | None, option("Routed groups to run instead of the mode's; 0 = shared only.", HOW)
    ] = None
    thinking: Annotated[
        str | None, option("off, on or auto (the model decides), instead of the mode's.", HOW)
    ] = None
    thinking_budget: Annotated[
        int | None, option("Most tokens of thought, then the answer has to begin.", HOW)
    ] = None
    drafter: Annotated[
        str, option("auto, off, suffix, ngram, head, self, model, or a+b of them.", HOW)
    ] = "auto"
    nodes: Annotated[
        int | None, option("Most tokens drafted per step; default: as many as pay.", HOW)
    ] = None
    draft_model: Annotated[
        str | None, option("Small model that drafts (folder); means --drafter model.", HOW)
    ] = None
    draft_groups: Annotated[
        int | None, option("Groups that drafter self runs; default 0.", HOW)
    ] = None
    max_tokens: Annotated[int | None, option("Most tokens to answer; default 256.", DRAW)] = None
    temperature: Annotated[float | None, option("0 = always the likeliest token.", DRAW)] = None
    top_p: Annotated[float | None, option("Smallest set with this much probability.", DRAW)] = None
    top_k: Annotated[int | None, option("The k likeliest tokens only.", DRAW)] = None
    min_p: Annotated[float | None, option("Drop below this share of the likeliest.", DRAW)] = None
    repetition_penalty: Annotated[float | None, option("Above 1: repeat less.", DRAW)] = None
    seed: Annotated[int | None, option("The same seed gives the same answer.", DRAW)] = None
    stop: Annotated[
        list[str] | None, option("Text that ends the answer; may be repeated.", DRAW)
    ] = None
    system: Annotated[str | None, option("System message.")] = None
    kv_dtype: Annotated[
        str, option("Keys and values: auto, int8 (half the memory) or model.", MODEL)
    ] = "auto"
    parallel: Annotated[
        str,
        option("Share the model among ranks: ep=2,tp=1,dp=1; default: those of torchrun.", MODEL),
    ] = "auto"

    def __post_init__(self) -> None:
        from fastslow.engine.params import Mode, Speculation

        Mode(**self._mode_changes())
        Speculation(**self._draft_changes())
        self._sampling()

    def load(self, **more: Any) -> LLM:
        """The model, loaded. more: further arguments of `LLM`."""
        names = ("kv_dtype", "parallel", "modes", "auto")
        return super().load(**{name: getattr(self, name) for name in names}, **more)

    def conversation(self) -> list[dict[str, str]]:
        """The start of a chat."""
        return [] if self.system is None else [{"role": "system", "content": self.system}]

    def call(self, llm: LLM, preset: str | None = None) -> dict[str, Any]:
        """Keyword arguments of `LLM.stream`.

        Args:
            llm: the model.
            preset: the mode, which a thinking budget of the command line bounds too, if it thinks;
                None = what the command line says.

        Raises:
            ValueError: there is no such preset, or the model has fewer groups.
        """
        from fastslow.policies.modes import find_mode

        changes = self._mode_changes()
        named: str | dict[str, Any] = preset or self.mode
        if preset is None and changes:
            named = {"base": self.mode, **changes}
        elif preset and self.thinking_budget is not None and llm.modes[preset].thinking != "off":
            named = {"base": preset, "name": preset, "thinking_budget": self.thinking_budget}
        mode = find_mode(named, llm.modes, llm.model.config.groups)
        return {"sampling": self._sampling(), "mode": mode, "speculation": self._speculation(mode)}

    def _speculation(self, mode: Mode) -> str | Speculation:
        """What the command line says about drafts, else "auto"."""
        from fastslow.engine.params import Speculation

        changes = self._draft_changes()
        if self.drafter == "auto" and not changes:
            return "auto"
        own = {} if mode.speculation is None else dict(mode.speculation)
        if self.drafter != "auto":
            own["drafter"] = self.drafter
        elif "model" in changes:
            own["drafter"] = "model"
        return Speculation(**{**own, **changes})

    def _sampling(self) -> SamplingParams:
        from fastslow.engine.params import SamplingParams

        given = {name: getattr(self, name) for name in SAMPLING}
        return SamplingParams(**{k: v for k, v in given.items() if v not in (None, [])})

    def _mode_changes(self) -> dict[str, Any]:
        return {name: v for name in MODE if (v := getattr(self, name)) is not None}

    def _draft_changes(self) -> dict[str, Any]:
        given = ((field, getattr(self, name)) for name, field in SPECULATION.items())
        return {field: value for field, value in given if value is not None}


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
