"""Circumstances that are noted beside figures: the machine and the versions."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import fastslow


def circumstances() -> dict[str, Any]:
    """The command, the versions and the machine, for files of figures."""
    return {
        "command": sys.argv,
        "versions": {
            "fastslow": fastslow.__version__,
            "torch": version("torch"),
            "python": platform.python_version(),
        },
        "machine": {
            "processor": processor(),
            "logical": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
        },
    }


def processor() -> str:
    """Its name, as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
