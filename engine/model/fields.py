"""Typed reads from config.json. Every one raises ValueError naming the field, its value, the limit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def integer(raw: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A whole number of at least 1; a missing or null field is `default`."""
    value = _given(raw, name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} {value!r} must be a whole number of at least 1")
    return value


def number(raw: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A finite number above 0; a missing or null field is `default`."""
    value = _given(raw, name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} {value!r} must be a number")
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} {value!r} must be a finite number above 0")
    return float(value)


def _given(raw: Mapping[str, Any], name: str, default: float | None) -> object:
    value = raw.get(name)
    value = default if value is None else value
    if value is None:
        raise ValueError(f"{name} is missing")
    return value


def boolean(raw: Mapping[str, Any], name: str, default: bool) -> bool:
    """true or false; a missing or null field is `default`."""
    value = raw.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ValueError(f"{name} {value!r} must be true or false")
    return value


def text(raw: Mapping[str, Any], name: str, default: str | None) -> str | None:
    """A string; a missing or null field is `default`."""
    value = raw.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise ValueError(f"{name} {value!r} must be a string")
    return value


def integers(raw: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Whole numbers of at least 0: one, a list of them, or none where missing or null."""
    value = raw.get(name)
    values = [] if value is None else value if isinstance(value, list) else [value]
    if any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in values):
        raise ValueError(f"{name} {value!r} must be whole numbers of at least 0")
    return tuple(values)


def count(raw: Mapping[str, Any], name: str) -> int:
    """A whole number of at least 0; 0 where missing or null."""
    found = integers(raw, name)
    if len(found) > 1:
        raise ValueError(f"{name} {raw[name]!r} must be one whole number")
    return found[0] if found else 0
