"""Models of every family, on plain torch or on the CPU kernels."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastslow.engine.backends import loader
from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.decoder import unsupported
from fastslow.engine.model.base import Model
from fastslow.engine.model.config import ModelConfig

KERNELS = (False, True)  # what tests of families run on


def load(folder: Path, kernels: bool, form: str = "float32") -> Model:
    """In a dtype; skips what the kernels do not run."""
    if kernels and (reason := unsupported(ModelConfig.from_folder(folder))) is not None:
        pytest.skip(reason)
    if kernels and not library.available():
        pytest.skip("the CPU kernels are not available")
    with pytest.MonkeyPatch.context() as patch:
        if not kernels:
            patch.setattr(library, "available", lambda: False)
        return loader.load_model(folder, form, "cpu", progress=False)
