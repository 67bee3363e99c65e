"""Where fastslow keeps what it makes once, and JSON objects in files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """For models, packed weights, compiled kernels: FASTSLOW_CACHE, else fastslow in XDG_CACHE_HOME,
    else ~/.cache/fastslow."""
    if named := os.environ.get("FASTSLOW_CACHE"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fastslow"


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, empty when there is no such file.

    Raises ValueError when the file is not valid JSON or holds something else than an object.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value
