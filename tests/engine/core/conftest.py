"""The model with every drafter, for all tests of the core."""

from __future__ import annotations

import pytest
from engine_tools import Bench
from exact_tools import make_bench


@pytest.fixture(scope="session")
def moge(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("models"), "moge", eos_token_id=2)
