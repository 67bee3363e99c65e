"""Tiny checkpoints that several files of this folder run."""

from pathlib import Path

import pytest
from tune_tools import write_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MoGE checkpoint with a chat template that never ends an answer by itself."""
    return write_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with room for very long answers."""
    return write_model(tmp_path_factory.mktemp("endless"), max_position_embeddings=65536)
