"""Settings of a server's operator: `ServerConfig`. The command line, the YAML of `serve run` and `create_app`
read it, so a new setting is one field here and its use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from loguru import logger
from pydantic import ConfigDict, Field, PlainSerializer, SkipValidation, field_validator

from fastslow.engine.params import MOST, Params, nearest, shown
from fastslow.engine.text.switches import EFFORTS
from fastslow.models.hub.name import HubName
from fastslow.serve.api.engine import ModelCard, WarmPrefix

Count = Annotated[int, Field(ge=1, le=MOST)]
Seconds = Annotated[float, Field(gt=0, le=1e9)]
Unchecked = (SkipValidation, PlainSerializer(lambda value: value))  # `LLM` checks, and takes more
Size = Annotated[str | None, *Unchecked]
FileOrObject = Annotated[str | Path | None, *Unchecked]

USUAL_TEMPERATURE, MOST_TEMPERATURE = 1.0, 2  # of OpenAI
MODEL, HOW, LOAD = "Model", "Thinking and speculation", "Under load"
SEVERAL, WHO, LOG = "More than one engine", "Who may use it", "Log and metrics"
REMEMBER = {"by-key": "by_key", "all": True, "off": False}  # as the command line says it, and `LLM`


def _setting(default: Any, description: str) -> Any:
    return Field(default=default, description=description)


class ServerSettings(Params):
    """Limits of requests, which hold before time or memory is spent, and what holds where requests say nothing."""

    body_bytes: Count = _setting(4 * 2**20, "most bytes of a request's body")
    json_depth: Count = _setting(100, "most levels of lists and objects in it")
    json_parts: Count = _setting(
        30_000, "most lists, objects, names, fractions and truth values in it"
    )
    json_values: Count = _setting(2**17, "most values in it, of any kind")
    prompt_characters: Count = _setting(2 * 2**20, "most characters of a prompt")
    messages: Count = _setting(4096, "most messages of a chat")
    prompts: Count = _setting(64, "most prompts of one call to /v1/completions")
    n: Annotated[int, Field(ge=1, le=128)] = _setting(
        16, "most answers to a call, all its prompts together"
    )
    stops: Annotated[int, Field(ge=1, le=64)] = _setting(32, "most stop strings")
    logprobs: Annotated[int, Field(ge=0, le=1000)] = _setting(
        20, "most likeliest tokens with log-probabilities"
    )
    biases: Count = _setting(1000, "most entries of logit_bias")
    grammar_bytes: Count = _setting(
        128 * 1024, "most bytes of a schema, an expression or a grammar"
    )
    longest_timeout: Seconds = _setting(3600, "most seconds that a client may give")
    timeout: Seconds = _setting(
        600, "seconds after which an answer ends, where a client says nothing"
    )
    write_timeout: Seconds = _setting(
        60, "a client that takes nothing for this many seconds is left"
    )
    heartbeat: Seconds = _setting(5, "seconds after which a silent stream gets a comment")
    default_mode: str = _setting("deep", "the mode where a client says nothing")
    keep_thoughts: bool = _setting(
        False, "whether chats keep the thoughts of earlier turns, where a client says nothing"
    )
    efforts: dict[str, str | dict[str, Any]] = Field(
        default_factory=lambda: dict[str, str | dict[str, Any]](EFFORTS),
        description="what each reasoning_effort means: a mode's name, or a mode's fields",
    )
    temperature: Annotated[float, Field(ge=0, le=MOST_TEMPERATURE)] | None = _setting(
        None, "where neither a client nor the mode says; None = the model's own, or else 1"
    )
    max_tokens: Count | None = _setting(
        8192,
        "most tokens of a chat's answer, where neither a client nor the mode says, and never more "
        "than fit the context",
    )
    completion_tokens: Count = _setting(
        16, "the same for /v1/completions, where 16 is OpenAI's number"
    )
    any_model: bool = _setting(False, "take every model's name as the one that is served")
    aliases: tuple[str, ...] = _setting((), "further names of the model")
    heads: tuple[str, ...] = _setting(
        (),
        "draft head, a path or hub name, that requests may name, the first by default; may be repeated",
    )
    draft_models: tuple[str, ...] = _setting((), "the same for draft models; may be repeated")
    thoughts_as: tuple[Literal["reasoning_content", "reasoning"], ...] = _setting(
        ("reasoning_content", "reasoning"), "fields of an answer that hold the thought"
    )

    def fit(self, card: ModelCard) -> None:
        """Say whose sampling holds where neither a client nor the mode gives it. Raises ValueError for a default
        mode that is none of the model's."""
        if self.default_mode not in card.modes:
            known = nearest(self.default_mode, card.modes)
            raise ValueError(f"default mode {shown(self.default_mode)} is unknown{known}")
        whose = "the settings"
        if self.temperature is None:
            whose = "the model's own" if "temperature" in card.sampling else "OpenAI's"
        found = self.sampling_of(card)
        fields = ", ".join(f"{name}={found[name]}" for name in found if name != "max_tokens")
        logger.info("sampling of requests that give none: {} (temperature: {})", fields, whose)

    @field_validator("efforts")
    @classmethod
    def _every_effort(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name in given:
            if name not in EFFORTS:
                raise ValueError(f"effort {shown(name)} is unknown{nearest(name, EFFORTS)}")
        return {**EFFORTS, **given}

    @property
    def drafts(self) -> list[dict[str, str]]:
        """Fields of the `Speculation` with each head and draft model, which are loaded at the start."""
        heads = [{"drafter": "suffix|head", "head": head} for head in self.heads]
        return heads + [{"drafter": "suffix|model", "model": model} for model in self.draft_models]

    @property
    def sampling(self) -> dict[str, Any]:
        """Fields of `SamplingParams` that the operator gives where neither a client nor the mode does."""
        most = MOST if self.max_tokens is None else self.max_tokens
        own = {} if self.temperature is None else {"temperature": self.temperature}
        return {**own, "max_tokens": most}

    def sampling_of(self, card: ModelCard) -> dict[str, Any]:
        """All that hold there: the operator's, then the model's own, and OpenAI's temperature."""
        return {"temperature": USUAL_TEMPERATURE, **card.sampling, **self.sampling}


def _option(panel: str, description: str, default: Any = None, *names: str, **bounds: Any) -> Any:
    """A field that is an option of `fastslow serve`, too; `names`: where it is not called as the field."""
    extra: dict[str, Any] = {"panel": panel, **({"names": list(names)} if names else {})}
    return Field(default=default, description=description, json_schema_extra=extra, **bounds)


class ModelArguments(Params):
    """Keyword arguments of `LLM`: those that are options of the command line, and any others."""

    model_config = ConfigDict(extra="allow")

    dtype: str = _option(MODEL, "auto, bfloat16, float32 or float16", "auto")
    quantization: str = _option(
        MODEL, "auto, none, int8, int4 or w8a8; auto runs a quantised model as it is", "auto"
    )
    device: str = _option(MODEL, "auto, cpu, cuda or npu", "auto")
    kv_dtype: str = _option(MODEL, "keys and values: auto, int8 (half the memory) or model", "auto")
    kv_memory: Size = _option(
        MODEL, "memory for keys and values, such as 2GiB; default: 0.3 of free"
    )
    kv_spill: Size = _option(
        MODEL, "file space for cached prefixes that memory has no room for, as 2GiB"
    )
    max_model_len: int | None = _option(
        MODEL, "most tokens of prompt plus answer; default: all that it can and has room for"
    )
    prompt_rows: int = _option(MODEL, "most rows of prompts read in one step", 512, ge=1)
    prefix_caching: bool = _option(MODEL, "share keys and values of prompts that start alike", True)
    parallel: str | None = _option(
        MODEL, "share the model among ranks: ep=2,tp=1,dp=1; default: one"
    )
    modes: FileOrObject = _option(HOW, "JSON file with presets of your own")
    auto: FileOrObject = _option(
        HOW, "file of `fastslow tune --modes`, which mode auto then goes by"
    )
    speculation: FileOrObject = _option(
        HOW, "of requests that say nothing: a drafter, or a file of `fastslow tune`"
    )
    remember: Literal["by-key", "all", "off"] = _option(
        HOW, "draft from earlier answers, of each API key its own by default", "by-key"
    )
    max_running: int = _option(LOAD, "most answers in one step; others wait", 64, ge=1)

    @field_validator("remember", mode="before")
    @classmethod
    def _as_said(cls, given: object) -> object:
        """Files may say it as `LLM` takes it."""
        return next((said for said, value in REMEMBER.items() if value == given), given)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments that were given, as plain JSON values."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        given = {name: str(v) if isinstance(v, Path) else v for name, v in given.items()}
        return given | {"remember": REMEMBER[self.remember]}


class ServerConfig(Params):
    """Configuration of a server: its model, the number of its engines, and the server in front of them."""

    model: str = Field(
        default="smollm2-moge",
        description="checkpoint folder, GGUF file, built-in name or hub name; default smollm2-moge",
        json_schema_extra={"argument": True},
    )
    name: str = _option(
        MODEL, "what clients call the model; default: MODEL's own name", "", "--served-model-name"
    )
    options: ModelArguments = _setting(ModelArguments(), "keyword arguments of `LLM`")
    warm: tuple[WarmPrefix, ...] = _setting(
        (), "prompts that are read before the first request: name, prompt and mode of each"
    )
    settings: ServerSettings = _setting(ServerSettings(), "limits of requests, and defaults")
    max_waiting: int = _option(LOAD, "most answers that wait; more get HTTP 429", 256, ge=0)
    drain_seconds: float = _option(
        LOAD, "what running answers have once SIGTERM or Ctrl-C comes", 30.0, ge=0, le=1e9
    )
    replicas: str | None = _option(
        SEVERAL, "engines to run, or by load from 1 to 4 with 1:4; default: one"
    )
    replica_cpus: Count | None = _option(
        SEVERAL, "processor cores of each engine; default: this machine's, shared; with --address 1"
    )
    replica_resources: str | None = _option(
        SEVERAL,
        "what else each engine takes of a node, by Ray's names: GPU=1 or NPU=4,fast_disk=1; default: a "
        "device for each rank, where --device names one",
    )
    api_keys: Path | None = _option(
        WHO, "keys file of `fastslow keys add`; default: the usual one, if it is there"
    )
    max_requests: int | None = _option(
        WHO, "most requests at the same time, of all keys; more get HTTP 429", ge=0
    )
    body_seconds: Annotated[float, Field(ge=0.01, le=1e9)] = _option(
        WHO, "what a request's body may take to come", 60.0
    )
    allow_origins: tuple[str, ...] = _option(
        WHO,
        "page that browsers may let use it, such as https://chat.example.com; may be repeated",
        (),
        "--allow-origin",
    )
    allow_hosts: tuple[str, ...] = _option(
        WHO,
        "name that requests may call it by, besides its own; '*' = any; may be repeated",
        (),
        "--allow-host",
    )
    log_format: str = _option(
        LOG, "how lines are written: text or json, one object each; default text", "text"
    )
    log_level: str = _option(
        LOG, "lowest that is written: debug, info, warning or error; default info", "info"
    )
    log_file: Path | None = _option(LOG, "file to add to; default: standard error")
    log_texts: bool = _option(
        LOG, "log prompts and answers, too: whoever reads the log reads them", False
    )
    metrics_by_key: bool = _option(LOG, "metrics by API key, too", False)

    @field_validator("replicas", mode="before")
    @classmethod
    def _as_text(cls, given: object) -> object:
        """YAML has 2 as a number."""
        return str(given) if isinstance(given, int) and not isinstance(given, bool) else given

    @property
    def served_name(self) -> str:
        """Name of the model for clients; of a hub's model its name there, without revision and variant."""
        if self.name or Path(self.model).exists() or (hub := HubName.parse(self.model)) is None:
            return self.name or Path(self.model).name or self.model
        return hub.repo

    @property
    def log_environment(self) -> dict[str, str]:
        """Environment variables that other processes need for the same log."""
        path = "" if self.log_file is None else str(self.log_file.absolute())
        each = {"FORMAT": self.log_format, "LEVEL": self.log_level, "FILE": path}
        return {f"FASTSLOW_LOG_{name}": value for name, value in each.items()}
