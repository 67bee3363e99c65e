"""What `generate` and `chat` can be told, and what it means for the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fastslow.engine.params import Mode, Speculation
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
KVDtype = Annotated[str, _option("Keys and values: auto, int8 (half the memory) or model.", MODEL)]
KVMemory = Annotated[
    str | None, _option("Memory for keys and values, such as 2GiB; default: 0.3 of free.", MODEL)
]
MaxModelLen = Annotated[
    int | None, _option("Most tokens of prompt and answer together; default: all it can.", MODEL)
]
Parallel = Annotated[
    str, _option("Share the model among ranks: ep=2,tp=1,dp=1; default: those of torchrun.", MODEL)
]
ModeName = Annotated[
    str, _option("deep, fast or another preset: see `fastslow modes`.", HOW, "--mode")
]
Modes = Annotated[str | None, _option("JSON file with presets of your own.", HOW, "--modes")]
Auto = Annotated[
    str | None, _option("File of `fastslow tune --modes`, which --mode auto then goes by.", HOW)
]
Thinking = Annotated[
    str | None, _option("off, on or auto (the model decides), instead of the mode's.", HOW)
]
ThinkingBudget = Annotated[
    int | None, _option("Most tokens of thought, then the answer has to begin.", HOW)
]
Groups = Annotated[
    int | None, _option("Routed groups to run instead of the mode's; 0 = shared only.", HOW)
]
Drafter = Annotated[
    str, _option("auto, off, suffix, ngram, head, self, model, or a+b of them.", HOW)
]
Nodes = Annotated[
    int | None, _option("Most tokens drafted per step; default: as many as pay.", HOW)
]
DraftModel = Annotated[
    str | None, _option("Small model that drafts (folder); means --drafter model.", HOW)
]
DraftGroups = Annotated[int | None, _option("Groups that drafter self runs; default 0.", HOW)]
MaxTokens = Annotated[int | None, _option("Most tokens to answer; default 256.", DRAW)]
Temperature = Annotated[float | None, _option("0 = always the likeliest token.", DRAW)]
TopP = Annotated[float | None, _option("Smallest set with this much probability.", DRAW)]
TopK = Annotated[int | None, _option("The k likeliest tokens only.", DRAW)]
MinP = Annotated[float | None, _option("Drop below this share of the likeliest.", DRAW)]
RepetitionPenalty = Annotated[float | None, _option("Above 1: repeat less.", DRAW)]
Seed = Annotated[int | None, _option("The same seed gives the same answer.", DRAW)]
Stop = Annotated[list[str] | None, _option("Text that ends the answer; may be repeated.", DRAW)]
System = Annotated[str | None, typer.Option(help="System message.", show_default=False)]

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
MODE = ("groups", "thinking", "thinking_budget")  # of the mode, if given
SPECULATION = {"nodes": "nodes", "draft_model": "model", "draft_groups": "groups"}


class Wishes:
    """The options of one command line, checked as far as that goes without a model.

    Args:
        given: option name -> value; None = not given.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        from fastslow.engine.params import Mode, SamplingParams, Speculation

        self._given = given
        self._changes = {name: given[name] for name in MODE if given[name] is not None}
        Mode(**self._changes)
        sampling = {k: given[k] for k in SAMPLING if given[k] not in (None, [])}
        self._sampling = SamplingParams(**sampling)
        self._drafting = {
            field: given[name] for name, field in SPECULATION.items() if given[name] is not None
        }
        Speculation(**self._drafting)

    def load(self) -> LLM:
        """The model, loaded."""
        from fastslow.llm import LLM

        names = (
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
        return LLM(self._given["model"], **{name: self._given[name] for name in names})

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
            "sampling": self._sampling,
            "mode": mode,
            "speculation": self._speculation_in(mode),
        }

    def _mode(self, llm: LLM) -> Mode:
        from fastslow.policies.modes import find_mode

        name: str = self._given["mode"]
        changed = {"base": name, **self._changes} if self._changes else name
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

        drafter = self._given["drafter"]
        if drafter == "auto" and not self._drafting:
            return "auto"
        own = {} if mode.speculation is None else dict(mode.speculation)
        if drafter != "auto":
            own["drafter"] = drafter
        elif "model" in self._drafting:
            own["drafter"] = "model"
        return Speculation(**{**own, **self._drafting})


def conversation(system: str | None) -> list[dict[str, str]]:
    """The start of a chat."""
    return [] if system is None else [{"role": "system", "content": system}]
