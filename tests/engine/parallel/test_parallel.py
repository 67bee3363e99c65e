"""Two ranks say what one says, whatever drafts and however the text is cut up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from engine_tools import Bench, Setting
from exact_tools import check, mixed
from parallel_tools import bench_on

from fastslow.engine.parallel.model import ParallelModel


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Experts by groups, attention by heads, which share a KV head."""
    with bench_on(tmp_path_factory.mktemp("ep"), "ep=2") as bench:
        yield bench


def test_every_drafter_in_a_mixed_batch_under_pressure(bench: Bench) -> None:
    assert isinstance(bench.model, ParallelModel)
    sums = check(bench, mixed(bench), Setting(pages=30, prompt_rows=11), warm=True)
    assert 0 < sums["accepted"] < sums["drafted"]
    assert sums["preempted"] > 0 and sums["cached"] > 0
