"""Modes as presets: built in, from the checkpoint, or the caller's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fastslow.engine.params import Mode, nearest, sentence


class _PresetFile(BaseModel):
    model_config = ConfigDict(extra="ignore")
    modes: dict[str, dict[str, object]] = {}


def builtin_modes(groups: int) -> dict[str, Mode]:
    """The presets that every checkpoint has.

    Args:
        groups: routed groups of the model; 0 = a dense model, whose modes differ in thinking only.
    """
    few = groups // 4 if groups else None
    return {
        "fast": Mode(
            name="fast",
            groups=few,
            thinking="off",
            description="mostly shared experts, no thinking: low latency",
        ),
        "deep": Mode(
            name="deep", groups=None, thinking="on", description="all expert groups, thinking on"
        ),
        "auto": Mode(
            name="auto", description="fast or deep, by what is asked; metrics.decision says why"
        ),
    }


def load_modes(folder: Path, groups: int) -> dict[str, Mode]:
    """Built-in presets, changed and joined by those of the checkpoint's `fastslow.json`.

    The file holds `{"modes": {name: {field: value, ...}}}`; fields not given keep the built-in value.

    Raises:
        ValueError: the file is not JSON, a field is unknown or out of range.
    """
    modes = builtin_modes(groups)
    path = folder / "fastslow.json"
    if not path.is_file():
        return modes
    try:
        presets = _PresetFile.model_validate(json.loads(path.read_text("utf-8"))).modes
        for name, fields in presets.items():
            base = modes[name].model_dump() if name in modes else {}
            preset = Mode.model_validate({**base, **fields, "name": name})
            modes[name] = check_groups(preset, groups)
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError, ValueError) as error:
        raise ValueError(f"presets in {path} cannot be read: {first_line(error)}") from error
    return modes


def find_mode(mode: str | Mode, presets: Mapping[str, Mode], groups: int) -> Mode:
    """A mode by name, or the caller's own, checked against the model.

    Raises:
        ValueError: an unknown name (the nearest known one is told), or groups outside 0..`groups`.
    """
    if isinstance(mode, Mode):
        return check_groups(mode, groups)
    if not isinstance(mode, str):
        raise ValueError(f"mode={mode!r} must be a name or a Mode, not {type(mode).__name__}")
    if mode not in presets:
        raise ValueError(f"mode={mode!r} is unknown{nearest(mode, presets)}")
    return presets[mode]


def check_groups(mode: Mode, groups: int) -> Mode:
    """The mode, with "all groups" always written as None."""
    if mode.groups is None:
        return mode
    if mode.groups > groups:
        limit = f"0..{groups}" if groups else "None: this model has no routed groups"
        raise ValueError(f"mode {mode.name!r}: groups={mode.groups} is outside {limit}")
    return mode.model_copy(update={"groups": None}) if mode.groups == groups else mode


def first_line(error: Exception) -> str:
    """One sentence from an error that may be long-winded."""
    if isinstance(error, ValidationError):
        return sentence(error, Mode.model_fields)
    return str(error).splitlines()[0]
