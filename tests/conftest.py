"""What tests of several rooms share. Helpers lie in support/, and every room has a folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from loguru import logger

import fastslow  # noqa: F401 - it turns its log off

logger.enable("fastslow")  # tests read it


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread: many small products, and no waiting for a second core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
