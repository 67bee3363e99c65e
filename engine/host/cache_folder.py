"""Where fastslow keeps what it makes once: models, packed weights, compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """FASTSLOW_CACHE, else fastslow in XDG_CACHE_HOME, else ~/.cache/fastslow."""
    if named := os.environ.get("FASTSLOW_CACHE"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fastslow"
