"""The settings file that `fastslow tune` writes and `LLM` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fastslow.engine.host.files import read_object
from fastslow.engine.params import Speculation, sentence

VERSION = 1


def write_settings(
    path: Path, model: str, speculation: Speculation, measured: dict[str, Any]
) -> None:
    """Write a new file in place of an old one: the settings to use, and the figures that were measured;
    see `add_settings`."""
    path.unlink(missing_ok=True)
    add_settings(path, model, speculation=speculation.model_dump(mode="json"), measured=measured)


def add_settings(path: Path, model: str, **parts: Any) -> None:
    """Add parts to a settings file: "auto" for mode auto, "modes" for presets. A file that is no settings
    file is not touched.

    Args:
        path: of the JSON file; it need not be there, its folder must.
        model: what the parts were found with, for people.
        parts: JSON values by name.

    Raises:
        ValueError: the file is there and is no settings file.
    """
    record: dict[str, Any] = read_object(path) if path.is_file() else {"version": VERSION}
    if record.get("version") != VERSION:
        raise ValueError(f"{str(path)!r} exists and is no settings file: name another with -o")
    for name, value in parts.items():
        both = isinstance(record.get(name), dict) and isinstance(value, dict) and name != "auto"
        record[name] = {**record[name], **value} if both else value
    record["model"] = model
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


def read_settings(path: str | Path) -> Speculation:
    """The speculation settings in a file of `write_settings`; other parts are ignored.

    Raises:
        ValueError: one sentence with the file and what is wrong with it.
    """
    if not Path(path).is_file():
        raise ValueError(f"settings file {str(path)!r} cannot be read: there is no such file")
    try:
        return _speculation(read_object(Path(path)))
    except ValidationError as error:
        reason = sentence(error, Speculation.model_fields)
        raise ValueError(f"settings file {str(path)!r}: speculation {reason}") from error
    except ValueError as error:
        raise ValueError(f"settings file {str(path)!r}: {error}") from error


def _speculation(record: dict[str, Any]) -> Speculation:
    version = record.get("version")
    if version != VERSION or isinstance(version, bool):
        raise ValueError(f"version={version!r} is not {VERSION}, the only one that is known")
    if not isinstance(record.get("speculation"), dict):
        raise ValueError(
            "speculation must be an object with the fields of Speculation; `fastslow tune --prompts` "
            "writes one"
        )
    return Speculation.model_validate(record["speculation"])
