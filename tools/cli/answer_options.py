"""The options of `generate` and `chat`: how the model answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastslow.draft.registry import DRAFTERS
from fastslow.tools.cli.options import MODEL, ModelOptions, option

if TYPE_CHECKING:
    from fastslow.engine.params import Mode, SamplingParams, Speculation
    from fastslow.llm import LLM

HOW, DRAW = "Thinking and speculation", "Sampling (default: the mode's own)"
SAMPLING = (
    *("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
    *("seed", "stop", "n", "logprobs"),
)  # fields of the same names; not every command has all of them
MODE = ("groups", "experts", "thinking", "thinking_budget")  # of the mode, if given
SPECULATION = {  # option -> field
    **{name: name for name in ("nodes", "head", "corpus")},
    **{f"draft_{name}": name for name in ("model", "groups", "experts")},
}
ModesFile = Annotated[str | None, option("JSON file with presets of your own.", HOW)]
AutoFile = Annotated[
    str | None, option("File of `fastslow tune --modes`, which --mode auto then goes by.", HOW)
]
KVDtype = Annotated[str, option("Keys and values: auto, int8 (half the memory) or model.", MODEL)]
USES = {"head": "head", "corpus": "suffix"}  # the drafter that an option is for


@dataclass(frozen=True)
class AnswerOptions(ModelOptions):
    """How `generate` and `chat` answer; checked as far as that goes without a model.

    Raises:
        ValueError: an option is out of range.
    """

    mode: Annotated[str, option("deep, fast or another preset: see `fastslow modes`.", HOW)] = (
        "deep"
    )
    modes: ModesFile = None
    auto: AutoFile = None
    groups: Annotated[
        int | None, option("Routed groups to run instead of the mode's; 0 = shared only.", HOW)
    ] = None
    experts: Annotated[
        int | None, option("Experts to run instead of the mode's, in a model without groups.", HOW)
    ] = None
    thinking: Annotated[
        str | None, option("off, on or auto (the model decides), instead of the mode's.", HOW)
    ] = None
    thinking_budget: Annotated[
        int | None, option("Most tokens of thought, then the answer has to begin.", HOW)
    ] = None
    no_thinking: Annotated[
        bool,
        option("Do not show the thought (`--thinking off`: do not think).", HOW, "--no-thinking"),
    ] = False
    speculation: Annotated[
        str | None, option("File of `fastslow tune`, such as tuned.json, or a drafter.", HOW)
    ] = None
    drafter: Annotated[str, option(f"auto, off, {', '.join(DRAFTERS)}, or a+b of them.", HOW)] = (
        "auto"
    )
    nodes: Annotated[
        int | None, option("Most tokens drafted per step; default: as many as pay.", HOW)
    ] = None
    draft_model: Annotated[
        str | None, option("Small model that drafts, as --model; means --drafter model.", HOW)
    ] = None
    draft_groups: Annotated[
        int | None, option("Groups that drafter self runs; default 0.", HOW)
    ] = None
    draft_experts: Annotated[
        int | None, option("Experts that drafter self runs, in a model without groups.", HOW)
    ] = None
    head: Annotated[
        str | None,
        option("File of `fastslow train-draft` or EAGLE-3 folder; default: the model's own.", HOW),
    ] = None
    corpus: Annotated[
        str | None, option("Stored answers of `fastslow corpus`, for drafter suffix.", HOW)
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
    template_kwargs: Annotated[
        str | None,
        option('Variables of the chat template, as JSON: \'{"reasoning_effort": "low"}\'.', HOW),
    ] = None
    kv_dtype: KVDtype = "auto"
    parallel: Annotated[
        str,
        option("Share the model among ranks: ep=2,tp=1,dp=1; default: those of torchrun.", MODEL),
    ] = "auto"

    def __post_init__(self) -> None:
        from fastslow.engine.params import Mode, Speculation
        from fastslow.tools.prompts import check_text

        for text in (self.system or "", *(getattr(self, "stop", None) or ())):
            check_text(text, "--system" if text == self.system else "--stop")
        self._variables()
        Mode(**self._mode_changes())
        Speculation(**self._draft_changes())
        self._sampling()
        if self.speculation is not None and self.drafter != "auto":
            raise ValueError("--speculation and --drafter are two drafters: give one of them")
        if self._tuned is not None:
            self._read_tuned(None)

    def load(self, **more: Any) -> LLM:
        """The model, loaded. more: further arguments of `LLM`."""
        names = ("kv_dtype", "parallel", "modes", "auto")
        return super().load(**{name: getattr(self, name) for name in names}, **more)

    def context(self, llm: LLM) -> int:
        """Most tokens of a prompt and its answer."""
        return self.max_model_len or llm.model.config.context

    def conversation(self) -> list[dict[str, str]]:
        """The start of a chat."""
        return [] if self.system is None else [{"role": "system", "content": self.system}]

    def call(self, llm: LLM, asked: str | Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Keyword arguments of `LLM.stream`.

        Args:
            llm: the model.
            asked: a preset or the fields of a mode, which the command line's options change too where
                these fields do not say otherwise; None = the mode that the command line says.

        Raises:
            ValueError: there is no such preset, or the model has fewer groups or experts.
        """
        from fastslow.engine.model.routed_units import RoutedUnits
        from fastslow.policies.modes import find_mode

        units, changes = RoutedUnits.of(llm.model.config), self._mode_changes()
        named: str | Mapping[str, Any] = self.mode if asked is None else asked
        given = {"base": named} if isinstance(named, str) else named
        changes = {name: value for name, value in changes.items() if name not in given}
        if asked is not None:
            plain = find_mode(asked, llm.modes, units).thinking
            if given.get("thinking", changes.get("thinking", plain)) == "off":
                changes.pop("thinking_budget", None)  # off is a budget of 0
        mode = find_mode({**given, **changes} if changes else named, llm.modes, units)
        call = {"sampling": self._sampling(), "mode": mode, "speculation": self._speculation(mode)}
        return call | {"chat_template_kwargs": self._variables()}

    def _variables(self) -> dict[str, Any] | None:
        """Those of the chat template.

        Raises:
            ValueError: the text is no JSON object.
        """
        from fastslow.tools.prompts import json_object, naming

        if self.template_kwargs is None:
            return None
        with naming("--template-kwargs"):
            return dict(json_object(self.template_kwargs))

    def _speculation(self, mode: Mode) -> str | Speculation:
        """What the command line says about drafts, else "auto"."""
        from fastslow.engine.params import Speculation

        changes, named = self._draft_changes(), self.speculation or self.drafter
        if named == "auto" and not changes:
            return "auto"
        own = {} if mode.speculation is None else dict(mode.speculation)
        if self._tuned is not None:
            own = dict(self._read_tuned(self.folder))
        elif named != "auto":
            own["drafter"] = named
        elif "model" in changes:
            own["drafter"] = "model"
        made = Speculation(**{**own, **changes})
        for field, drafter in USES.items():
            if field in changes and drafter not in made.drafter and made.drafter != "auto":
                raise ValueError(f"--{field} is for drafter {drafter}, and this is {made.drafter}")
        return made

    @property
    def _tuned(self) -> Path | None:
        """The file of settings that --speculation names, if it names one."""
        given = self.speculation or ""
        return Path(given) if given.endswith(".json") or Path(given).is_file() else None

    def _read_tuned(self, folder: Path | None) -> Speculation:
        from fastslow.settings import read_settings

        assert self._tuned is not None
        return read_settings(self._tuned, folder)

    def _sampling(self) -> SamplingParams:
        from fastslow.engine.params import SamplingParams

        given = {name: getattr(self, name, None) for name in SAMPLING}
        return SamplingParams(**{k: v for k, v in given.items() if v not in (None, [])})

    def _mode_changes(self) -> dict[str, Any]:
        return {name: v for name in MODE if (v := getattr(self, name)) is not None}

    def _draft_changes(self) -> dict[str, Any]:
        given = ((field, getattr(self, name)) for name, field in SPECULATION.items())
        return {field: value for field, value in given if value is not None}


@dataclass(frozen=True)
class GenerateOptions(AnswerOptions):
    """How `generate` answers."""

    n: Annotated[int | None, option("Answers to each prompt; default 1.", DRAW)] = None
    logprobs: Annotated[
        int | None,
        option(
            "Log-probabilities of the N likeliest tokens at each place; needs --json or --file.",
            DRAW,
        ),
    ] = None
