"""Drafters of other packages: the entry points of GROUP, loaded when a request first names one."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from loguru import logger

GROUP = "fastslow.drafters"
T = TypeVar("T")


def find_entries(taken: Collection[str]) -> dict[str, EntryPoint]:
    """Find drafters of installed packages, by name; none of them is imported. A name in `taken`, one that another
    package has, and one that is no identifier are refused with one log line."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        if entry.name.isidentifier() and entry.name not in found and entry.name not in taken:
            found[entry.name] = entry
            continue
        why = "is taken" if entry.name.isidentifier() else "is no identifier"
        said = "drafter {!r} of {} is refused: its name {}"
        logger.warning(said, entry.name, _package(entry), why)
    return found


@cache  # a package that fails to load is not tried again
def load(entry: EntryPoint, kind: type[T]) -> T | str:
    """Load a `kind` by its entry point; else return one sentence about why it does not load, which the log gets."""
    try:
        found = entry.load()
        if isinstance(found, kind):
            return found
        why = f"{entry.value} is no {kind.__name__}"
    except Exception as error:  # noqa: BLE001 - of a package's code
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    said = f"drafter {entry.name!r} of {_package(entry)} does not load: {why}"
    logger.warning("{}", said)
    return said


def _package(entry: EntryPoint) -> str:
    return "a package" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
