"""Tiny targets of draft heads."""

from pathlib import Path

import pytest
from engine_tools import write_kin


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kin(tmp_path_factory.mktemp("head") / "target", routed=0.3, vocab_size=12, num_hidden_layers=2)


@pytest.fixture(scope="session")
def wide_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 90 tokens, and wider."""
    return write_kin(tmp_path_factory.mktemp("wide") / "target", vocab_size=90, num_hidden_layers=2, hidden_size=64)
