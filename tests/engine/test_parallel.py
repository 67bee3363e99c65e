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


def test_every_drafter_in_a_mixed_batch(bench: Bench) -> None:
    assert isinstance(bench.model, ParallelModel)
    sums = check(bench, mixed(bench), Setting(prompt_rows=11))
    assert 0 < sums["accepted"] < sums["drafted"]


def test_preemption_small_chunks_and_prefixes(bench: Bench) -> None:
    sums = check(bench, mixed(bench)[1::2], Setting(pages=26, prompt_rows=5), warm=True)
    assert sums["preempted"] > 0 and sums["accepted"] > 0 and sums["cached"] > 0
