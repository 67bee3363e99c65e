"""The settings file that `fastslow tune` writes and `LLM` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict

from fastslow.engine.checkpoint.identity import DIGEST, check_model, model_digest
from fastslow.engine.host.files import about, is_file, read_object
from fastslow.engine.params import Params, Speculation

VERSION = 1


class TunedSettings(Params):
    """The part of a settings file that says how to draft."""

    model_config = ConfigDict(extra="ignore")

    version: Literal[1]  # VERSION
    speculation: Speculation


def write_settings(
    path: Path,
    model: str,
    speculation: Speculation,
    measured: dict[str, Any],
    folder: Path | None = None,
) -> None:
    """Write a new file: the settings to use, and the figures that were measured; see `add_settings`."""
    path.unlink(missing_ok=True)
    drafts = speculation.model_dump(mode="json")
    add_settings(path, model, folder, speculation=drafts, measured=measured)


def add_settings(path: Path, model: str, folder: Path | None = None, **parts: Any) -> None:
    """Add parts to a settings file: "auto" for mode auto, "modes" for presets. A file that is no settings file, or
    holds those of another model, is not touched.

    model: what the parts were found with, for people. folder: of that model, whose fingerprint goes into the file;
    None = the file fits any. parts: JSON values by name; None takes one out.
    """
    record = check_settings(path, model, folder)
    for name, value in parts.items():
        both = isinstance(record.get(name), dict) and isinstance(value, dict) and name != "auto"
        record[name] = {**record[name], **value} if both else value
        if value is None:
            del record[name]
    record["model"] = model
    if folder is not None:
        record[DIGEST] = model_digest(folder)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


def check_settings(path: Path, model: str, folder: Path | None) -> dict[str, Any]:
    """Read a settings file, so that parts found with a model can be added to it; a new record where there is
    none. ValueError: the file is there and is no settings file, or it holds those of another model."""
    record: dict[str, Any] = read_object(path) if path.is_file() else {"version": VERSION}
    if record.get("version") != VERSION:
        raise ValueError(f"{str(path)!r} exists and is no settings file: name another with -o")
    where, named = f"settings file {str(path)!r}", record.get("model", model)
    if DIGEST not in record and named != model:
        raise ValueError(
            f"{where} names model {named!r}, and this is {model!r}: name another with -o"
        )
    check_model(record, folder, where)
    return record


def read_settings(path: str | Path, folder: Path | None = None) -> Speculation:
    """The speculation settings in a file of `write_settings`; other parts are ignored. `folder`: of the model that
    they are for; None = any. ValueError: the file and what is wrong with it, or that it was found with another model.
    """
    where = f"settings file {str(path)!r}"
    if not is_file(Path(path)):
        raise ValueError(f"{where} cannot be read: there is no such file")
    with about(where):
        record = read_object(Path(path))
        found = TunedSettings(**record)
    check_model(record, folder, where)
    return found.speculation
