"""A folder that is written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastslow.engine.host.unfinished import unfinished


def require_vacant(out: Path) -> None:
    """ValueError if `out` exists and is anything but an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"output folder must be new or empty, got {out}, which is neither")


@contextmanager
def fresh_folder(out: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `out` that becomes `out` when the block ends well.

    Readers see either nothing or the complete folder. If another process finished first, its folder stays
    and ours is thrown away: both hold the same.
    """
    with unfinished(out) as folder:
        folder.mkdir(mode=0o700)
        yield folder
        for path in (folder, *folder.iterdir()):  # safetensors makes private files
            path.chmod(0o755 if path.is_dir() else 0o644)
        try:
            os.rename(folder, out)
        except OSError:
            if not (out / "config.json").is_file():
                raise


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
