"""The options of `fastslow serve`: the fields of `ServerConfig`, and where the command's own server listens."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from fastslow.engine.checked import Params
from fastslow.engine.host.files import read_object
from fastslow.engine.params import shown
from fastslow.serve.api.config import HOW, LOAD, SEVERAL, WHO, ServerConfig, ServerSettings
from fastslow.tools.cli.options import OptionFields
from fastslow.tools.job_options import field

LISTEN = "Where it listens"
LARGEST = 4 * 2**20  # bytes of a file of --warm
ON_A_PANEL = [
    name
    for name, info in ServerConfig.model_fields.items()
    if isinstance(info.json_schema_extra, dict) and "panel" in info.json_schema_extra
]
CONFIG = OptionFields("model", "options", *ON_A_PANEL)
SETTINGS = OptionFields(
    *("default_mode", "keep_thoughts", "max_tokens"),
    panel=HOW,
    heads="head",
    draft_models="draft_model",
)


class Place(Params):
    """Place where this command's own server listens, and the files that it reads."""

    host: str = field("127.0.0.1", "address to listen at; 0.0.0.0 = all of this machine's", LISTEN)
    port: Annotated[int, Field(ge=0, le=65535)] = field(
        8000, "port to listen at; 0 = any that is free", LISTEN
    )
    unix_socket: Path | None = field(None, "file to listen at, instead of host and port", LISTEN)
    in_process: bool = field(
        False,
        "run the engine in the server's own process: less memory, and no new start of it",
        LOAD,
    )
    settings: Path | None = field(
        None, "JSON file with limits of requests, and what holds where they say nothing", LOAD
    )
    warm: tuple[Path, ...] = field(
        (),
        "file with a system prompt (.txt), or messages (.json), that is read once and stays in the prefix "
        "cache; may be repeated",
        HOW,
    )
    warm_mode: tuple[str, ...] = field(
        (), "mode that --warm is for, may be repeated; default: the default mode", HOW
    )
    api_key: tuple[str, ...] = field(
        (),
        "a key of your own, may be repeated; better FASTSLOW_API_KEY, which ps does not show",
        WHO,
    )
    address: str | None = field(
        None, "Ray cluster to run the engines on: auto or HOST:PORT; default: this machine", SEVERAL
    )

    @model_validator(mode="after")
    def _agree(self) -> Place:
        if self.warm_mode and not self.warm:
            raise ValueError("--warm-mode is for --warm: give that, too")
        if "TORCHELASTIC_RUN_ID" in os.environ and not self.in_process:
            raise ValueError("under torchrun the first rank serves: give --in-process")
        if sys.platform == "win32" and (not self.in_process or self.unix_socket):
            raise ValueError("on Windows an engine needs --in-process, and no --unix-socket")
        return self


def complete(config: ServerConfig, settings: ServerSettings, place: Place) -> ServerConfig:
    """The whole configuration: with limits and warm prompts from their files; options stand above files.
    ValueError: a file cannot be read, or a field does not fit."""
    path = place.settings
    if path is not None and not path.exists():
        raise ValueError(f"--settings {path} does not exist")
    found = {} if path is None else read_object(path)
    try:
        limits = ServerSettings(**{**found, **settings.model_dump(exclude_unset=True)})
    except ValueError as error:
        raise ValueError(f"{'' if path is None else f'{path}: '}{error}") from None
    warm = [
        {"name": file.name, "prompt": read_warm(file), "mode": mode}
        for file in place.warm
        for mode in place.warm_mode or [limits.default_mode]
    ]
    return config.model_copy(update={"settings": limits, "warm": tuple(warm)})


def read_warm(path: Path) -> list[dict[str, Any]]:
    """The messages of a file: JSON in OpenAI's form, or the text of a system prompt, without the line break
    that editors put at its end. ValueError: one sentence about what does not fit."""
    text = _text(path)
    if path.suffix != ".json":
        if not text.strip():
            raise ValueError(f"--warm {shown(str(path))} is empty")
        return [{"role": "system", "content": text.removesuffix("\n")}]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--warm {shown(str(path))} is not JSON: {error}") from None
    messages = found.get("messages") if isinstance(found, dict) else found
    if not (isinstance(messages, list) and messages and all(isinstance(m, dict) for m in messages)):
        raise ValueError(
            f"--warm {shown(str(path))} must hold a list of messages, or an object with `messages`"
        )
    return messages


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"it has more than {LARGEST} bytes")
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, ValueError) as error:  # a UnicodeError is one, too
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"--warm {shown(str(path))} cannot be read: {reason}") from None
