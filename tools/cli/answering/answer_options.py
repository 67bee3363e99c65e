"""The options of `generate` and `chat`: how the model answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from fastslow.draft.registry import DRAFTERS, split_names
from fastslow.engine.params import Mode, SamplingParams, Speculation
from fastslow.serve.api.config import HOW, MODEL, ModelArguments
from fastslow.tools.cli.options import LOADED, ModelOptions, OptionFields
from fastslow.tools.job_options import field
from fastslow.tools.prompts import check_text, json_object, naming

if TYPE_CHECKING:
    from fastslow.llm import LLM

DRAW = "Sampling (default: the mode's own)"
SAMPLING = (
    *("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
    *("seed", "stop"),
)
CHANGES = OptionFields(
    "effort", "groups", "experts", "thinking", "thinking_budget", panel=HOW, defaults=False
)
DRAFTS = OptionFields(
    *("drafter", "nodes", "head", "corpus"),
    panel=HOW,
    defaults=False,
    model="draft_model",
    groups="draft_groups",
    experts="draft_experts",
)
USES = {"head": "head", "corpus": "suffix", "model": "model", "groups": "self", "experts": "self"}
IN_AUTO = ["head", "suffix"]  # the drafters that "auto" may mean


class AnswerOptions(ModelOptions):
    """Options of `generate` and `chat`; checked as far as that goes without a model. `changes`, `drafts` and
    `sampling` hold what the command line gave: see their `model_fields_set`."""

    options: Annotated[ModelArguments, OptionFields(*LOADED, "kv_dtype", "modes", "auto")] = (
        ModelArguments()
    )
    mode: str = field(
        "deep",
        "deep, fast or another preset: see `fastslow modes`; or the fields of a mode, as JSON: "
        '\'{"base": "deep", "loop": true, "answer_room": 100}\'',
        HOW,
    )
    changes: Annotated[Mode, CHANGES] = Mode()
    no_thinking: bool = field(
        False, "do not show the thought (`--thinking off`: do not think)", HOW
    )
    speculation: str | Path | None = field(
        None,
        f"file of `fastslow tune`, such as tuned.json, or a drafter: {', '.join(DRAFTERS)}",
        HOW,
    )
    drafts: Annotated[Speculation, DRAFTS] = Speculation()
    sampling: Annotated[SamplingParams, OptionFields(*SAMPLING, panel=DRAW, defaults=False)] = (
        SamplingParams()
    )
    system: str | None = field(None, "system message")
    template_kwargs: str | None = field(
        None, 'variables of the chat template, as JSON: \'{"reasoning_effort": "low"}\'', HOW
    )
    parallel: str = field(
        "auto", "share the model among ranks: ep=2,tp=1,dp=1; default: those of torchrun", MODEL
    )

    def model_post_init(self, _context: object) -> None:
        check_text(self.system or "", "--system")
        for text in self.sampling.stop:
            check_text(text, "--stop")
        self._variables()
        if isinstance(fields := self._mode, dict):
            for name in self.changes.model_fields_set & fields.keys():
                option = name.replace("_", "-")
                raise ValueError(f"--{option} and --mode both say {name}: give one of them")
        if self.speculation is not None and self.drafts.drafter != "auto":
            raise ValueError("--speculation and --drafter are two drafters: give one of them")
        if self._tuned is not None:
            self._read_tuned(None)

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `LLM`."""
        return {**super().arguments, "parallel": self.parallel}

    def conversation(self) -> list[dict[str, str]]:
        """The start of a chat."""
        return [] if self.system is None else [{"role": "system", "content": self.system}]

    def call(self, llm: LLM, asked: str | Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Keyword arguments of `LLM.stream`. asked: a preset or the fields of a mode, which the command line's
        options change too where these fields do not say otherwise; None = the command line's mode.
        ValueError: there is no such preset, or the model has fewer groups or experts."""
        from fastslow.engine.model.routed_units import RoutedUnits
        from fastslow.policies.modes import find_mode

        units = RoutedUnits.of(llm.model.config)
        named: str | Mapping[str, Any] = self._mode if asked is None else asked
        given = {"base": named} if isinstance(named, str) else named
        changes = self.changes.model_dump(exclude_unset=True, exclude=set(given))
        if asked is not None:
            changes.pop("effort", None)
            plain = find_mode(asked, llm.modes, units).thinking
            if given.get("thinking", changes.get("thinking", plain)) == "off":
                changes.pop("thinking_budget", None)  # off is a budget of 0
        mode = find_mode({**given, **changes} if changes else named, llm.modes, units)
        call = {"sampling": self.sampling, "mode": mode, "speculation": self._speculation(mode)}
        return call | {"chat_template_kwargs": self._variables()}

    @property
    def _mode(self) -> str | dict[str, Any]:
        """The mode's name, or its fields; they begin with "deep" where they name no base."""
        if self.changes.effort is not None and "mode" not in self.model_fields_set:
            return {}  # which the effort says
        if not self.mode.lstrip().startswith("{"):
            return self.mode
        with naming("--mode"):
            return {"base": "deep", **json_object(self.mode)}

    def _variables(self) -> dict[str, Any] | None:
        """Variables of the chat template. ValueError if the text is no JSON object."""
        if self.template_kwargs is None:
            return None
        with naming("--template-kwargs"):
            return dict(json_object(self.template_kwargs))

    def _speculation(self, mode: Mode) -> str | Speculation:
        """Return the speculation that the command line asks for, else "auto". ValueError: options do not fit it."""
        changes = self.drafts.model_dump(exclude_unset=True, exclude={"drafter"})
        named = str(self.speculation or self.drafts.drafter)
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
        there = IN_AUTO if made.drafter == "auto" else split_names(made.drafter)
        for name, drafter in USES.items():
            if name in changes and drafter not in there:
                option = DRAFTS.names[name].replace("_", "-")
                raise ValueError(f"--{option} is for drafter {drafter}, and this is {made.drafter}")
        return made

    @property
    def _tuned(self) -> Path | None:
        """The file of settings that --speculation names, if it names one."""
        given = str(self.speculation or "")
        return Path(given) if given.endswith(".json") or Path(given).is_file() else None

    def _read_tuned(self, folder: Path | None) -> Speculation:
        from fastslow.settings import read_settings

        assert self._tuned is not None
        return read_settings(self._tuned, folder)


class GenerateCommand(AnswerOptions):
    """Options and prompts of `generate`. ValueError: options contradict each other."""

    prompt: str | None = Field(
        None,
        description="what to ask; - reads standard input",
        json_schema_extra={"argument": True},
    )
    file: Path | None = field(
        None,
        "many prompts: a text file with one a line, or JSON lines (.jsonl) with prompt or messages; mode, "
        "sampling and chat_template_kwargs of a line are optional",
    )
    raw: bool = field(False, "continue the text: no template")
    as_json: bool = field(False, "one JSON object at the end", names="--json")
    sampling: Annotated[
        SamplingParams, OptionFields(*SAMPLING, "n", "logprobs", panel=DRAW, defaults=False)
    ] = SamplingParams()

    def model_post_init(self, context: object) -> None:
        super().model_post_init(context)
        if self.raw and self.system is not None:
            raise ValueError("--system needs the chat template, which --raw leaves out")
        if self.sampling.logprobs is not None and self.file is None and not self.as_json:
            raise ValueError("--logprobs are for programs: add --json, or give --file")
        if (self.prompt is None) == (self.file is None):
            raise ValueError("give a PROMPT (- is standard input) or --file, and not both")
