"""Typed reads from config.json. Every one raises ValueError naming the field, its value, the limit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastslow.engine.host.files import shown

MOST = 2**31 - 1  # what an int of the kernels holds
# A weight that is there shows that a size is right; these come before any is looked at.
MOST_LAYERS, MOST_EXPERTS, MOST_HEADS, MOST_HEAD_DIM = 4096, 65_536, 65_536, 16_384
MOST_WIDTH = 2**24  # of hidden states and of what lies inside an MLP
LEAST_EPS, MOST_EPS = 1e-20, 1.0
LEAST_THETA, MOST_THETA = 1.0, 1e15
MOST_STRETCH = 1e6  # of rotary positions


def integer(
    raw: Mapping[str, Any], name: str, default: int | None = None, most: int = MOST, least: int = 1
) -> int:
    """A whole number from `least` to `most`; a missing or null field is `default`."""
    value = _given(raw, name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} {shown(value)} must be a whole number of at least {least}")
    if value > most:
        raise ValueError(f"{name} {shown(value)} must be at most {most}")
    return value


def number(
    raw: Mapping[str, Any],
    name: str,
    default: float | None = None,
    least: float = 0.0,
    most: float = 1e30,
) -> float:
    """A finite number above 0, from `least` to `most`; a missing or null field is `default`."""
    value = _given(raw, name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} {shown(value)} must be a number")
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} {shown(value)} must be a finite number above 0")
    if not least <= value <= most:
        raise ValueError(f"{name} {shown(value)} must be from {least:g} to {most:g}")
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
        raise ValueError(f"{name} {shown(value)} must be true or false")
    return value


def text(raw: Mapping[str, Any], name: str, default: str | None) -> str | None:
    """A string; a missing or null field is `default`."""
    value = raw.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise ValueError(f"{name} {shown(value)} must be a string")
    return value


def integers(raw: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Whole numbers from 0 to MOST: one, a list of them, or none where missing or null."""
    value = raw.get(name)
    values = [] if value is None else value if isinstance(value, list) else [value]
    if any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in values):
        raise ValueError(f"{name} {shown(value)} must be whole numbers of at least 0")
    if any(v > MOST for v in values):
        raise ValueError(f"{name} {shown(value)} must be at most {MOST}")
    return tuple(values)


def count(raw: Mapping[str, Any], name: str, most: int = MOST) -> int:
    """A whole number from 0 to `most`; 0 where missing or null."""
    return integer(raw, name, default=0, least=0, most=most)
