"""Devices that tests of this folder run on."""

from collections.abc import Iterator

import pytest
from accelerator_tools import DEVICES, ops_of

from fastslow.engine.backends.accelerator.ops import PagedOps


@pytest.fixture(params=DEVICES)
def ops(request: pytest.FixtureRequest) -> Iterator[PagedOps]:
    with ops_of(request.param) as made:
        yield made
