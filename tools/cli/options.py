"""What `generate` and `chat` can be told, and what it means for the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from inspect import Signature, signature
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fastslow.engine.params import Mode, SamplingParams, Speculation
    from fastslow.llm import LLM


def _option(help: str, panel: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False)


MODEL, HOW, DRAW = "Model", "Thinking and speculation", "Sampling (default: the mode's own)"

Model = Annotated[
    str, _option("Checkpoint folder or built-in name; default smollm2-moge.", MODEL, "--model")
]
DType = Annotated[str, _option("auto, bfloat16, float32 or float16.", MODEL)]
Quantization = Annotated[
    str, _option("auto (a quantised one as it is), none, int8, int4 or w8a8.", MODEL)
]
Device = Annotated[str, _option("auto, cpu, cuda or npu.", MODEL)]
KVMemory = Annotated[
    str | None, _option("Memory for keys and values, such as 2GiB; default: 0.3 of free.", MODEL)
]
MaxModelLen = Annotated[
    int | None, _option("Most tokens of prompt and answer together; default: all it can.", MODEL)
]
ModeName = Annotated[
    str, _option("deep, fast or another preset: see `fastslow modes`.", HOW, "--mode")
]

MODE = ("groups", "thinking", "thinking_budget")  # of the mode, if given
SPECULATION = {"nodes": "nodes", "draft_model": "model", "draft_groups": "groups"}
LOADING = (
    "dtype",
    "quantization",
    "device",
    "kv_dtype",
    "kv_memory",
    "max_model_len",
    "parallel",
    "modes",
    "auto",
)
SAMPLING = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "seed",
    "stop",
)


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """The options of a command that answers, checked as far as that goes without a model; None = not
    given.

    Raises:
        ValueError: an option is out of range.
    """

    model: Model = "smollm2-moge"
    mode: ModeName = "deep"
    modes: Annotated[str | None, _option("JSON file with presets of your own.", HOW)] = None
    auto: Annotated[
        str | None, _option("File of `fastslow tune --modes`, which --mode auto then goes by.", HOW)
    ] = None
    groups: Annotated[
        int | None, _option("Routed groups to run instead of the mode's; 0 = shared only.", HOW)
    ] = None
    thinking: Annotated[
        str | None, _option("off, on or auto (the model decides), instead of the mode's.", HOW)
    ] = None
    thinking_budget: Annotated[
        int | None, _option("Most tokens of thought, then the answer has to begin.", HOW)
    ] = None
    drafter: Annotated[
        str, _option("auto, off, suffix, ngram, head, self, model, or a+b of them.", HOW)
    ] = "auto"
    nodes: Annotated[
        int | None, _option("Most tokens drafted per step; default: as many as pay.", HOW)
    ] = None
    draft_model: Annotated[
        str | None, _option("Small model that drafts (folder); means --drafter model.", HOW)
    ] = None
    draft_groups: Annotated[
        int | None, _option("Groups that drafter self runs; default 0.", HOW)
    ] = None
    max_tokens: Annotated[int | None, _option("Most tokens to answer; default 256.", DRAW)] = None
    temperature: Annotated[float | None, _option("0 = always the likeliest token.", DRAW)] = None
    top_p: Annotated[float | None, _option("Smallest set with this much probability.", DRAW)] = None
    top_k: Annotated[int | None, _option("The k likeliest tokens only.", DRAW)] = None
    min_p: Annotated[float | None, _option("Drop below this share of the likeliest.", DRAW)] = None
    repetition_penalty: Annotated[float | None, _option("Above 1: repeat less.", DRAW)] = None
    seed: Annotated[int | None, _option("The same seed gives the same answer.", DRAW)] = None
    stop: Annotated[
        list[str] | None, _option("Text that ends the answer; may be repeated.", DRAW)
    ] = None
    system: Annotated[str | None, typer.Option(help="System message.", show_default=False)] = None
    dtype: DType = "auto"
    quantization: Quantization = "auto"
    device: Device = "auto"
    kv_dtype: Annotated[
        str, _option("Keys and values: auto, int8 (half the memory) or model.", MODEL)
    ] = "auto"
    kv_memory: KVMemory = None
    max_model_len: MaxModelLen = None
    parallel: Annotated[
        str,
        _option("Share the model among ranks: ep=2,tp=1,dp=1; default: those of torchrun.", MODEL),
    ] = "auto"

    def __post_init__(self) -> None:
        from fastslow.engine.params import Mode, Speculation

        Mode(**self._changes)
        Speculation(**self._drafting)
        self._sampling()

    def load(self) -> LLM:
        """The model, loaded."""
        from fastslow.llm import LLM

        return LLM(self.model, **{name: getattr(self, name) for name in LOADING})

    def call(self, llm: LLM, preset: str | None = None) -> dict[str, Any]:
        """Keyword arguments of `LLM.stream`.

        Args:
            llm: the model.
            preset: the mode, which a thinking budget of the command line bounds too, if it thinks;
                None = what the command line says.

        Raises:
            ValueError: there is no such preset, or the model has fewer groups.
        """
        mode = self._mode(llm) if preset is None else self._bounded(llm, preset)
        return {
            "sampling": self._sampling(),
            "mode": mode,
            "speculation": self._speculation_in(mode),
        }

    @property
    def _changes(self) -> dict[str, Any]:
        """What is given of the mode."""
        return {name: value for name in MODE if (value := getattr(self, name)) is not None}

    @property
    def _drafting(self) -> dict[str, Any]:
        """What is given of drafts, besides the drafter."""
        given = {field: getattr(self, name) for name, field in SPECULATION.items()}
        return {field: value for field, value in given.items() if value is not None}

    def _sampling(self) -> SamplingParams:
        from fastslow.engine.params import SamplingParams

        given = {name: getattr(self, name) for name in SAMPLING}
        return SamplingParams(**{k: v for k, v in given.items() if v not in (None, [])})

    def _mode(self, llm: LLM) -> Mode:
        from fastslow.policies.modes import find_mode

        changed = {"base": self.mode, **self._changes} if self._changes else self.mode
        return find_mode(changed, llm.modes, llm.model.config.groups)

    def _bounded(self, llm: LLM, preset: str) -> Mode:
        from fastslow.policies.modes import find_mode

        most = self._changes.get("thinking_budget")
        if most is None or llm.modes[preset].thinking == "off":
            return llm.modes[preset]
        changed = {"base": preset, "name": preset, "thinking_budget": most}
        return find_mode(changed, llm.modes, llm.model.config.groups)

    def _speculation_in(self, mode: Mode) -> str | Speculation:
        """What the command line says about drafts, else "auto"."""
        from fastslow.engine.params import Speculation

        drafter = self.drafter
        if drafter == "auto" and not self._drafting:
            return "auto"
        own = {} if mode.speculation is None else dict(mode.speculation)
        if drafter != "auto":
            own["drafter"] = drafter
        elif "model" in self._drafting:
            own["drafter"] = "model"
        return Speculation(**{**own, **self._drafting})


def answers(command: Callable[..., None]) -> Callable[..., None]:
    """For a command whose first parameter is an `AnswerOptions`: typer, which reads signatures, sees
    their fields behind the command's own parameters."""
    _, *own = signature(command, eval_str=True).parameters.values()
    shared = signature(AnswerOptions, eval_str=True).parameters.values()

    @wraps(command)
    def run(**given: Any) -> None:
        mine = {parameter.name: given.pop(parameter.name) for parameter in own}
        command(AnswerOptions(**given), **mine)

    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in (*own, *shared)]
    vars(run)["__signature__"] = Signature(parameters)
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def conversation(system: str | None) -> list[dict[str, str]]:
    """The start of a chat."""
    return [] if system is None else [{"role": "system", "content": system}]
