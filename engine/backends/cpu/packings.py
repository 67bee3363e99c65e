"""The packed weights in the cache: for which model, how large, when used last; and a limit on them all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loguru import logger

from fastslow.engine.host.files import cache_folder, read_object, shown

PACKED, DIGESTS, SUFFIX = "packed", "digests", ".packed"
LIMIT_VARIABLE = "FASTSLOW_CACHE_LIMIT"  # gigabytes
USUAL_LIMIT = 100.0  # gigabytes, where half of the disk is more
GB = 10**9


@dataclass(frozen=True, slots=True)
class Packing:
    """A file of packed weights.

    Attributes:
        path: of the file.
        model: the folder or GGUF file that it was made from; None where that is not known.
        format: in which it is packed.
        size: bytes.
        used: when it was used last, seconds since 1970.
    """

    path: Path
    model: Path | None
    format: str
    size: int
    used: float


def packings() -> list[Packing]:
    """All of them, the one used last in front."""
    return sorted(_packings(), key=lambda packing: -packing.used)


def _packings() -> Iterator[Packing]:
    for path in (cache_folder() / PACKED).glob(f"*{SUFFIX}"):
        where, _, rest = path.name.partition("-")
        try:
            facts = path.stat()
            model = read_object(cache_folder() / DIGESTS / f"{where}.json").get("model")
        except (OSError, ValueError):  # gone meanwhile; or a record that cannot be read
            continue
        found = Path(model) if isinstance(model, str) else None
        yield Packing(path, found, rest.rpartition("-")[0], facts.st_size, facts.st_atime)


def limit() -> int:
    """Bytes that all packings may take: FASTSLOW_CACHE_LIMIT in GB, else 100 GB or half of the disk's free
    space with what they take now, whichever is less.

    Raises:
        ValueError: the variable is not a number above 0.
    """
    given = os.environ.get(LIMIT_VARIABLE)
    if given is None:
        ours, folder = sum(packing.size for packing in packings()), cache_folder().absolute()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        return int(min(USUAL_LIMIT * GB, (shutil.disk_usage(there).free + ours) / 2))
    try:
        most = float(given)
    except ValueError:
        most = 0.0
    if not 0 < most < 1e9:
        raise ValueError(f"{LIMIT_VARIABLE}={shown(given)} must be a number of gigabytes above 0")
    return int(most * GB)


def shrink(keep: Path) -> None:
    """Remove the packings used longest ago until all fit the limit; `keep` stays."""
    most, every = limit(), packings()
    total, removed = sum(packing.size for packing in every), []
    for packing in reversed(every):
        if total > most and packing.path != keep:
            packing.path.unlink(missing_ok=True)  # who has it mapped keeps it
            total -= packing.size
            removed.append(packing.model.name if packing.model else packing.path.name)
    if removed:
        logger.info(
            "packed weights used longest ago were removed for the limit of {:.1f} GB: {}",
            most / GB,
            ", ".join(removed),
        )
