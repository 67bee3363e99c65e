"""The options of `serve`: which model, how it runs, where it listens."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastslow.tools.cli.answer_options import HOW, AutoFile, KVDtype, ModesFile
from fastslow.tools.cli.options import MODEL, ModelOptions, option, shown_option

if TYPE_CHECKING:
    from fastslow.serve.api.settings import ServerSettings
    from fastslow.serve.engines.engine_settings import EngineSettings

LISTEN, LOAD = "Where it listens", "Under load"
PASSED = (  # to `LLM`, as they are
    *("dtype", "quantization", "device", "kv_dtype", "kv_memory", "kv_spill"),
    *("max_model_len", "parallel"),
    *("speculation", "modes", "auto", "prompt_rows", "max_running", "prefix_caching"),
)
REMEMBER = {"by-key": "by_key", "all": True, "off": False}


@dataclass(frozen=True)
class ServeOptions(ModelOptions):
    """What `serve` runs.

    Raises:
        ValueError: options contradict each other.
    """

    model: Annotated[
        str,
        typer.Argument(
            help="Checkpoint folder, GGUF file or built-in name; default smollm2-moge.",
            show_default=False,
        ),
    ] = "smollm2-moge"
    kv_dtype: KVDtype = "auto"
    kv_spill: Annotated[
        str | None,
        option("File space for cached prefixes that memory has no room for, as 2GiB.", MODEL),
    ] = None
    prompt_rows: Annotated[
        int, shown_option("Most rows of prompts read in one step.", MODEL, min=1)
    ] = 512
    prefix_caching: Annotated[
        bool,
        typer.Option(
            "--prefix-caching/--no-prefix-caching",
            help="Share keys and values of prompts that start alike.",
            rich_help_panel=MODEL,
        ),
    ] = True
    parallel: Annotated[
        str | None, option("Share the model among ranks: ep=2,tp=1,dp=1; default: one.", MODEL)
    ] = None
    served_model_name: Annotated[
        str | None, option("What clients call the model; default: MODEL's own name.", MODEL)
    ] = None
    default_mode: Annotated[
        str | None, option("Mode of requests that name none; default deep.", HOW)
    ] = None
    keep_thoughts: Annotated[
        bool,
        typer.Option(
            "--keep-thoughts",
            help="Keep thoughts of earlier turns in chats that do not say: less is read again.",
            rich_help_panel=HOW,
        ),
    ] = False
    modes: ModesFile = None
    auto: AutoFile = None
    speculation: Annotated[
        str | None,
        option("Of requests that say nothing: a drafter, or a file of `fastslow tune`.", HOW),
    ] = None
    warm: Annotated[
        list[Path] | None,
        option(
            "File with a system prompt (.txt), or messages (.json), that is read once and stays in "
            "the prefix cache; may be repeated.",
            HOW,
        ),
    ] = None
    warm_mode: Annotated[
        list[str] | None,
        option("Mode that --warm is for, may be repeated; default: the default mode.", HOW),
    ] = None
    remember: Annotated[
        str,
        option(
            "Draft from earlier answers: by-key (each API key its own; the default), all or off.",
            HOW,
        ),
    ] = "by-key"
    host: Annotated[
        str, shown_option("Address to listen at; 0.0.0.0 = all of this machine's.", LISTEN)
    ] = "127.0.0.1"
    port: Annotated[
        int, shown_option("Port to listen at; 0 = any that is free.", LISTEN, min=0, max=65535)
    ] = 8000
    unix_socket: Annotated[
        Path | None, option("File to listen at, instead of host and port.", LISTEN)
    ] = None
    max_running: Annotated[
        int, shown_option("Most answers in one step; others wait.", LOAD, min=1)
    ] = 64
    max_waiting: Annotated[
        int, shown_option("Most answers that wait; more get HTTP 429.", LOAD, min=0)
    ] = 256
    settings: Annotated[
        Path | None,
        option("JSON file with limits of requests, and what holds where they say nothing.", LOAD),
    ] = None
    drain_seconds: Annotated[
        float, shown_option("What running answers have once SIGTERM or Ctrl-C comes.", LOAD, min=0)
    ] = 30.0
    in_process: Annotated[
        bool,
        typer.Option(
            "--in-process",
            help="Run the engine in the server's own process: less memory, and no new start of it.",
            rich_help_panel=LOAD,
        ),
    ] = False

    def __post_init__(self) -> None:
        if self.remember not in REMEMBER:
            raise ValueError(f"--remember {self.remember!r} must be by-key, all or off")
        if self.warm_mode and not self.warm:
            raise ValueError("--warm-mode is for --warm: give that, too")
        if "TORCHELASTIC_RUN_ID" in os.environ and not self.in_process:
            raise ValueError("under torchrun the first rank serves: give --in-process")

    @property
    def name(self) -> str:
        """What clients call the model."""
        return self.served_model_name or Path(self.model).name or self.model

    def engine_settings(self) -> EngineSettings:
        """Which model runs, and how.

        Raises:
            ValueError: a file does not fit.
        """
        from fastslow.serve.engines.engine_settings import EngineSettings
        from fastslow.serve.engines.warm_prefix import WarmPrefix
        from fastslow.tools.cli.warm_file import read_warm

        each = [(path.name, read_warm(path)) for path in self.warm or ()]
        modes = self.warm_mode or [self.server_settings().default_mode]
        warm = [WarmPrefix(name=n, prompt=p, mode=mode) for n, p in each for mode in modes]
        return EngineSettings(self.model, self.name, self.llm_options(), self.max_waiting, warm)

    def server_settings(self) -> ServerSettings:
        """Limits of requests, and what holds where they say nothing.

        Raises:
            ValueError: the file of the settings cannot be read, or a field does not fit.
        """
        from fastslow.engine.host.files import read_object
        from fastslow.serve.api.settings import ServerSettings

        if self.settings is not None and not self.settings.exists():
            raise ValueError(f"--settings {self.settings} does not exist")
        given = {} if self.settings is None else read_object(self.settings)
        if self.default_mode is not None:
            given["default_mode"] = self.default_mode
        if self.keep_thoughts:
            given["keep_thoughts"] = True
        try:
            return ServerSettings(**given)
        except ValueError as error:
            where = "" if self.settings is None else f"{self.settings}: "
            raise ValueError(f"{where}{error}") from None

    def llm_options(self) -> dict[str, Any]:
        """Keyword arguments of `LLM`, as plain JSON values."""
        given = {name: getattr(self, name) for name in PASSED}
        return given | {"remember": REMEMBER[self.remember]}
