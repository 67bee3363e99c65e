"""The heads that come with fastslow."""

from __future__ import annotations

from pathlib import Path

from fastslow.draft.head.head import read_metadata
from fastslow.draft.head.target import fingerprint

FOLDER = Path(__file__).with_name("data")


def shipped_head(target: Path) -> Path | None:
    """The file of the head that was trained for the checkpoint in this folder, if one was."""
    own = fingerprint(target)
    for path in sorted(FOLDER.glob("*.safetensors")):
        if read_metadata(path).get("target") == own:
            return path
    return None
