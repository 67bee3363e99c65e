"""The project on an Arm processor that qemu plays: kernels at every level, and an answer."""

import subprocess
import sys
from pathlib import Path

import pytest

import emulation
from fastslow.engine.backends.cpu.compiled.levels import ARM_ADDED

HERE = pytest.mark.skipif(bool(emulation.lacking()), reason=f"there is no {', '.join(emulation.lacking())}")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, emulation.__file__, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"^not found: qemu-aarch64, .*; on Debian: apt-get install"):
        emulation.make(tmp_path)


def test_there_is_a_chip_for_each_level_and_what_runs_there() -> None:
    assert list(emulation.CHIPS) == list(ARM_ADDED)
    assert all((emulation.ROOT / "tests" / name).is_file() for name in emulation.TESTS)


def test_a_wheel_runs_without_a_compiler(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    python = tmp_path / "root" / "usr" / "bin" / "python3.13"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$PYTHONPATH, $PATH, $CXX., $*"\n')
    python.chmod(0o755)
    assert emulation.run(python, "neon", ["fastslow", "doctor"], source=tmp_path / "wheel") == 0
    assert capfd.readouterr().out.startswith(f"{tmp_path}/site:{tmp_path}/wheel, /nonexistent, ., -m fastslow doctor\n")


@pytest.mark.slow
@HERE
@pytest.mark.parametrize("level", list(ARM_ADDED))
def test_kernels_and_an_answer(level: str) -> None:
    done = run("--level", level)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout and "42" in done.stdout.splitlines()[-2]


@pytest.mark.slow
@HERE
def test_a_level_above_the_chip_is_refused() -> None:
    done = run("--level", "i8mm", "--chip", "neoverse-n1", "fastslow", *emulation.ANSWER)
    said = "FASTSLOW_KERNELS=i8mm is above this chip, which has no i8mm, bf16"
    assert done.returncode and said in done.stderr, done.stderr
