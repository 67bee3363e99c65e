"""The settings file that `fastslow tune` writes and `LLM` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fastslow.engine.params import Speculation, sentence

VERSION = 1


def write_settings(
    path: Path, model: str, speculation: Speculation, measured: dict[str, Any]
) -> None:
    """Write what was found.

    Args:
        path: of the JSON file; the folder must be there.
        model: what it was found with, for people.
        speculation: what to use.
        measured: figures, for people and programs.
    """
    record = {
        "version": VERSION,
        "model": model,
        "speculation": speculation.model_dump(mode="json"),
        "measured": measured,
    }
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


def add_settings(path: Path, model: str, **parts: Any) -> None:
    """Put parts into a settings file, beside what is there already: "auto" for mode auto, "modes" for
    presets. A file that is no settings file is not touched.

    Args:
        path: of the JSON file; it need not be there, its folder must.
        model: what the parts were found with, for people.
        parts: JSON values by name.

    Raises:
        ValueError: the file is there and is no settings file.
    """
    record: Any = {"version": VERSION}
    if path.is_file():
        try:
            record = json.loads(path.read_text("utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"settings file {str(path)!r} is no JSON: {error}") from error
        if not isinstance(record, dict) or record.get("version") != VERSION:
            raise ValueError(
                f"{str(path)!r} is there and is no settings file: name another with -o"
            )
    for name, value in parts.items():
        both = isinstance(record.get(name), dict) and isinstance(value, dict) and name != "auto"
        record[name] = {**record[name], **value} if both else value
    record["model"] = model
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


def read_settings(path: str | Path) -> Speculation:
    """The speculation settings in a file of `write_settings`; whatever else is there is for people.

    Raises:
        ValueError: one sentence with the file and what is wrong with it.
    """
    try:
        return _speculation(json.loads(Path(path).read_text("utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"settings file {str(path)!r} cannot be read: {error}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"settings file {str(path)!r} is no JSON: {error}") from error
    except ValidationError as error:
        reason = sentence(error, Speculation.model_fields)
        raise ValueError(f"settings file {str(path)!r}: speculation {reason}") from error
    except ValueError as error:
        raise ValueError(f"settings file {str(path)!r}: {error}") from error


def _speculation(record: Any) -> Speculation:
    if not isinstance(record, dict):
        raise ValueError(f"a JSON object is needed, not {type(record).__name__}")
    version = record.get("version")
    if version != VERSION or isinstance(version, bool):
        raise ValueError(f"version={version!r} is not {VERSION}, the only one that is known")
    if not isinstance(record.get("speculation"), dict):
        raise ValueError(
            "speculation must be an object with the fields of Speculation; `fastslow tune --prompts` "
            "writes one"
        )
    return Speculation.model_validate(record["speculation"])
