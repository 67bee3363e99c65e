"""`fastslow cache`: what is listed, what goes, and the limit on it all."""

import os
import re
import shutil
import time
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path

import checkpoints
import pytest
from cli_tools import printed, records
from kernel_tools import compiled

from fastslow.engine.backends.cpu import library, store
from fastslow.engine.backends.loader import load_model
from fastslow.tools.cli.checkpoints.cache import KEPT

pytestmark = compiled
DAY = 24 * 3600


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three packed models, the first used ten days ago, the second five, the third now."""
    library.kernels()
    monkeypatch.setenv("FASTSLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(store.LIMIT_VARIABLE, raising=False)
    monkeypatch.setattr(store, "SMALL", 0)
    monkeypatch.setattr(store, "HUGE", tmp_path / "nothing")  # the file is written first
    folders = [checkpoints.write_dense(tmp_path / f"model{n}", seed=n) for n in range(3)]
    for folder, days in zip(folders, (10, 5, 0)):
        load_model(folder, "float32")
        (made,) = (one for one in store.packings() if one.model == folder)
        facts, then = made.path.stat(), time.time() - days * DAY
        os.utime(made.path, (then, facts.st_mtime))
    return folders


def kept() -> list[Path | None]:
    return [one.model for one in store.packings()]


def test_all_are_listed_by_when_they_were_used(models: list[Path]) -> None:
    found = records("cache", "list", "--json")
    assert [record["model"] for record in found] == [str(path) for path in reversed(models)]
    for record in found:
        assert record["format"] == "float32" and record["size"] == Path(record["path"]).stat().st_size
    assert 4.9 * DAY < found[0]["used"] - found[1]["used"] < 5.1 * DAY
    said = "".join(printed("cache", "list").replace("│", "").split())  # a long path is folded
    assert "10.0daysago" in said and "ofatmost" in said
    load_model(models[0], "float32")
    assert kept() == [models[0], models[2], models[1]]


def test_the_ones_used_longest_ago_go_for_the_limit(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    size = store.packings()[0].size
    monkeypatch.setenv(store.LIMIT_VARIABLE, str(2.5 * size / 1e9))
    new = checkpoints.write_dense(tmp_path / "new", seed=9)
    load_model(new, "float32")
    assert set(kept()) == {new, models[2]}
    (line,) = (line for line in logged if "removed for the limit" in line)
    assert line.rstrip().endswith("model0, model1")
    monkeypatch.setenv(store.LIMIT_VARIABLE, "0.000000001")  # the one in use stays
    load_model(models[0], "float32")
    assert kept() == [models[0]]


@pytest.mark.parametrize("given", ["many", "0", "-3", "nan", "inf"])
def test_a_limit_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(store.LIMIT_VARIABLE, given)
    with pytest.raises(ValueError, match=f"FASTSLOW_CACHE_LIMIT='{given}' must be a number of gig"):
        store.limit()


def test_clear_takes_all_that_is_ours_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "cache"
    monkeypatch.setenv("FASTSLOW_CACHE", str(root))
    assert "0 B freed" in printed("cache", "clear")
    (tmp_path / "theirs").write_text("data")
    for name in ("packed", "kernels", "smollm2-moge-0f", "mine"):
        (root / name).mkdir(parents=True)
        (root / name / "file").write_bytes(bytes(1000))
    (root / "packed" / "link").symlink_to(tmp_path / "theirs")
    (root / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(bytes(96))
    assert "3.0 KiB freed" in printed("cache", "clear")
    assert [path.name for path in root.iterdir()] == ["mine"], "another program's"
    assert (tmp_path / "theirs").read_text() == "data"
    shutil.rmtree(root / "mine")
    assert printed("cache", "clear") and not root.exists()


def test_clear_knows_every_name_in_the_cache_folder() -> None:
    top = Path(__file__).parents[2]
    rooms = ("draft", "engine", "fastslow", "policies", "serve", "tools", "benchmarks")
    # `self.cache` is the hub's, which is not ours to clear
    named = r'(?:cache_folder\(\)|(?<!self\.)\bcache|root) / f?"([\w-]+)|^PACKED, DIGESTS.*= "(\w+)", "(\w+)"|^GGUF = "(.*)"'
    sources = [path.read_text("utf-8") for room in rooms for path in (top / room).rglob("*.py")]
    found = list(chain(*re.findall(named, "\n".join(sources), re.MULTILINE)))
    assert {"kernels", "packed", "step_times", "smollm2-"} <= set(found)
    for name in filter(None, found):
        assert any(fnmatch(name, kept) for kept in KEPT), name
