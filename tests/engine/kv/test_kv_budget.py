"""The number of pages that the cache gets, and the memory that it is reckoned from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_dense

from fastslow import LLM, engine_args
from fastslow.engine.host import machine as memory
from fastslow.engine.kv import budget
from fastslow.engine.kv.budget import format_bytes, page_budget, parse_bytes

GIB = 1024**3


def pages(kv_memory: float | str | None, *, context: int = 160, max_requests: int = 1000) -> int:
    return page_budget(
        kv_memory, page_bytes=1024, page_size=16, context=context, max_requests=max_requests, device="cpu"
    ).pages


@pytest.fixture
def ten_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "free_memory", lambda device: 10 * 1024**2)


@pytest.mark.usefixtures("ten_mib")
def test_a_share_is_cut_at_what_the_requests_can_use() -> None:
    assert pages(None) == 3072
    assert pages(0.5) == pages(0.5, context=159) == 5120
    assert pages(None, max_requests=4) == 40
    # bytes are taken as they are
    assert pages(1024 * 100, max_requests=1) == 100
    assert pages("2MiB", max_requests=1) == 2048


@pytest.mark.usefixtures("ten_mib")
def test_too_little_for_one_request_is_refused_with_numbers() -> None:
    with pytest.raises(ValueError, match="9.0 KiB, but one request with a context of 160 tokens"):
        pages(9 * 1024 + 1)
    with pytest.raises(ValueError, match=r"needs 10\.0 KiB"):
        pages(0.0001)
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="must be above 0 and at most 1"):
            pages(share)


@pytest.mark.usefixtures("ten_mib")
def test_running_states_are_taken_off_first() -> None:
    """With a snapshot for each place and for each 4,096 tokens, and so that one request of the longest text fits."""
    sizes: dict[str, Any] = {"page_bytes": 1024, "page_size": 16, "context": 160, "device": "cpu"}
    states: dict[str, Any] = {"request_bytes": 2048, "snapshot_bytes": 512}
    assert page_budget(102400, **sizes, **states, max_requests=8) == (80, 8, 8)
    assert page_budget(102400, **sizes, **states, max_requests=80) == (80, 8, 8)
    assert page_budget(102400, **sizes, request_bytes=2048, max_requests=8) == (84, 8, 0)
    assert page_budget(12 * 1024, **sizes, **states, max_requests=8) == (10, 1, 0)
    with pytest.raises(ValueError, match=r"11\.0 KiB, but one request .* needs 12\.0 KiB"):
        page_budget(11 * 1024, **sizes, **states, max_requests=8)
    assert page_budget(10 << 20, **{**sizes, "context": 1 << 15}, **states, max_requests=8) == (10204, 8, 39)
    assert page_budget(1.0, **sizes, **states, max_requests=8) == (80, 8, 16), "of a share no more than can be used"


def test_running_states_without_rows_get_pages_for_each_place() -> None:
    sizes: dict[str, Any] = {"page_bytes": 0, "page_size": 16, "context": 100, "device": "cpu"}
    states: dict[str, Any] = {"request_bytes": 1024, "snapshot_bytes": 512}
    assert page_budget(102400, **sizes, **states, max_requests=8) == (7 * (8 + 184), 8, 184)
    assert page_budget(1024, **sizes, **states, max_requests=8) == (7, 1, 0)
    with pytest.raises(ValueError, match="^kv_memory is 1000 B, but one request .* needs 1.0 KiB$"):
        page_budget(1000, **sizes, **states, max_requests=8)


def test_amounts_in_text() -> None:
    amounts = {"2GiB": 2 * GIB, "1.5 gib": 3 * GIB // 2, "500MB": 5 * 10**8, "2G": 2 * 10**9}
    amounts |= {"4096": 4096, "4096B": 4096}
    assert [parse_bytes(text) for text in amounts] == list(amounts.values())
    for text in ("", "much", "-1GiB", "2XB", "GiB", "50%"):
        with pytest.raises(ValueError, match="must be like 2GiB"):
            parse_bytes(text)
    said = [format_bytes(n) for n in (1, 1536, 3 * GIB, 5 * 1024 * GIB)]
    assert said == ["1 B", "1.5 KiB", "3.0 GiB", "5.0 TiB"]


def test_a_container_limit_bounds_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable:    4096 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.free_memory("cpu") == 4096 * 1024
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 700\ninactive_file 300\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory("cpu") == 4096 * 1024
    (tmp_path / "memory.max").write_text("5000\n")
    assert memory.free_memory("cpu") == 4300


@pytest.mark.usefixtures("ten_mib")
@pytest.mark.parametrize(
    "asked", [10**400, 10**5000, 10**18, "9" * 400 + "GiB", "99999TiB"], ids=lambda x: str(type(x))
)
def test_more_than_the_machine_has_is_refused(asked: int | str) -> None:
    with pytest.raises(ValueError, match="^kv_memory=.* is more than there is: 10.0 MiB are free$"):
        pages(asked)


@pytest.mark.parametrize("error", [MemoryError(), OSError(12, "no memory")])
def test_memory_that_is_not_to_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(engine_args, "kv_cache_for", fail)
    with pytest.raises(ValueError, match="^kv_memory='2MiB' is more than there is: .* are free$"):
        LLM(write_dense(tmp_path, num_hidden_layers=1), kv_memory="2MiB", progress=False)
