"""Reports as HTML without scripts and without anything to load, in light and dark."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

LONGEST = 400  # characters shown of a question


def render(template: str, **values: Any) -> str:
    """The page that a template of this folder makes of the values; text in them is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shorten"] = shorten
    return environment.get_template(template).render(values)


def shorten(text: str, most: int = LONGEST) -> str:
    """The text, cut after `most` characters."""
    return text if len(text) <= most else f"{text[:most].rstrip()} ..."


def conditions(own: Mapping[str, str], circumstances: Mapping[str, Any]) -> dict[str, str]:
    """How something was measured: when, what the report adds, and `machine.circumstances`."""
    return {
        "when": time.strftime("%Y-%m-%d %H:%M"),
        **own,
        "machine": ", ".join(f"{key} {value}" for key, value in circumstances["machine"].items()),
        "versions": ", ".join(f"{key} {value}" for key, value in circumstances["versions"].items()),
        "command": " ".join(circumstances["command"]),
    }
