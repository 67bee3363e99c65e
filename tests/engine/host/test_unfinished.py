"""Files that a killed process leaves in the cache go at the next start, and what a living one makes stays."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import checkpoints
import pytest

from fastslow import LLM
from fastslow.engine.backends.cpu.library import available
from fastslow.engine.host import unfinished as module
from fastslow.engine.host.unfinished import sweep, unfinished

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it has no such locks")

MAKES = """
import sys, time
from pathlib import Path
from fastslow.engine.host.unfinished import unfinished
with unfinished(Path(sys.argv[1])) as work:
    work.mkdir()
    (work / "half").write_text("x")
    print("there", flush=True)
    time.sleep(60)
"""


def maker(target: Path) -> subprocess.Popen[str]:
    """A process in the middle of making something."""
    process = subprocess.Popen([sys.executable, "-c", MAKES, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    return process


def killed(target: Path) -> None:
    with maker(target) as process:
        process.send_signal(signal.SIGKILL)


def names(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


def test_only_the_work_of_dead_processes_is_swept(tmp_path: Path) -> None:
    inner = tmp_path / "packed"
    killed(inner / "one")
    killed(tmp_path / "two")
    with maker(inner / "three") as alive:
        (inner / "finished.packed").write_text("whole")
        assert names(inner) == [".lock", ".lock", ".packed", ".part", ".part"]
        sweep(tmp_path)
        assert names(inner) == [".lock", ".packed", ".part"] and names(tmp_path) == [""]
        alive.send_signal(signal.SIGKILL)
    sweep(tmp_path)
    assert names(inner) == [".packed"]


def test_nothing_is_left_of_what_ends_well_or_fails(tmp_path: Path) -> None:
    with unfinished(tmp_path / "made") as work:
        work.write_text("x")
        sweep(tmp_path)  # its lock is held by this very process
        os.replace(work, tmp_path / "made")
    with pytest.raises(OSError, match="full"), unfinished(tmp_path / "other") as work:
        work.mkdir()
        raise OSError("full")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_another_machine_has_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks of some shared folders are known on their own machine only."""
    killed(tmp_path / "one")
    there = tmp_path / "boot_id"
    there.write_text("another machine")
    monkeypatch.setattr(module, "BOOT", there)
    sweep(tmp_path)
    locks = list(tmp_path.glob(f"{module.PREFIX}*{module.LOCK}"))
    assert len(locks) == 1
    long_ago = locks[0].stat().st_mtime - 2 * module.DAY
    os.utime(locks[0], (long_ago, long_ago))
    sweep(tmp_path)
    assert names(tmp_path) == [""]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    cache = tmp_path / "cache"
    killed(cache / "one")
    (work,) = cache.glob(f"{module.PREFIX}*{module.WORK}")
    work.rename(tmp_path / "aside")
    work.symlink_to(precious)
    sweep(cache)
    assert not list(cache.iterdir()) and (precious / "file").is_file()


def test_many_make_and_sweep_at_once(tmp_path: Path) -> None:
    """Nobody loses what it is making."""

    def make(number: int) -> None:
        for n in range(30):
            target = tmp_path / f"{number}-{n}"
            with unfinished(target) as work:
                work.write_text("x")
                sweep(tmp_path)
                os.replace(work, target)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(make, range(4)))
    assert len(list(tmp_path.iterdir())) == 120


def test_an_llm_sweeps_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoints.write_dense(tmp_path / "model")
    cache = tmp_path / "cache"
    killed(cache / "packed" / "one")
    available()  # the kernels of the usual cache
    monkeypatch.setenv("FASTSLOW_CACHE", str(cache))
    with LLM(folder, progress=False, kv_memory="1MiB"):
        assert not list((cache / "packed").iterdir())
