"""The wheel: without kernels for every system, or with a library for each level, which needs no compiler."""

import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from kernel_tools import compiled

from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.compiled import levels
from fastslow.engine.backends.cpu.compiled.kernel_cache import usable_levels

ROOT = Path(__file__).parents[2]
CPU = "engine/backends/cpu"
KERNELS = "fastslow/engine/backends/cpu/compiled/prebuilt"
TOY = """#pragma GCC visibility push(default)
#include <string>
#include <thread>
int hidden(const char* given) { return (int)std::string(given).size(); }
extern "C" int fs_answer() { std::thread([] {}).join(); return hidden("fast") + 38; }
extern "C" int other() { return 1; }
"""
PROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "fastslow"
version = "1"
[tool.setuptools]
packages = ["fastslow"]
"""
linux = pytest.mark.skipif(sys.platform != "linux" or not levels.chip_flags(), reason="tests of Linux's wheels")
SECOND = levels.LEVELS[1]
# The exactness tests, as any level must pass them.
EXACT = ["engine/cpu/test_cpu_formats.py", "engine/cpu/test_gguf_formats.py"]
EXACT += ["engine/cpu/test_only_best.py", "engine/core/test_exact.py"]


def build(source: Path, into: Path, wanted: str) -> subprocess.CompletedProcess[str]:
    """As `pip wheel --no-build-isolation` does it; nothing is fetched."""
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    env = {**os.environ, "FASTSLOW_BUILD_LEVELS": wanted}
    command = [sys.executable, "-c", code, str(into)]
    return subprocess.run(command, cwd=source, env=env, capture_output=True, text=True, check=False)


def unpack(folder: Path) -> tuple[str, Path]:
    """The tag of the one wheel in a folder, and its files."""
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return wheel.stem.partition("-py3-none-")[2], folder / "site"


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """The project with one small kernel."""
    (tmp_path / "fastslow").mkdir()
    (tmp_path / "fastslow/__init__.py").touch()
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    shutil.copy(ROOT / "setup.py", tmp_path)
    shutil.copytree(ROOT / CPU / "compiled", tmp_path / CPU / "compiled")
    (tmp_path / CPU / "kernels").mkdir()
    (tmp_path / CPU / "kernels/toy.cpp").write_text(TOY)
    return tmp_path


@linux
@compiled
def test_a_wheel_has_the_levels_that_are_asked_for(toy: Path) -> None:
    done = build(toy, toy / "some", f"{SECOND}, plain")
    assert done.returncode == 0, done.stderr
    tag, site = unpack(toy / "some")
    assert tag.startswith("manylinux_2_") and tag.endswith(f"_{platform.machine()}")
    minor = int(tag.split("_")[2])
    assert minor == 28 or f"the kernels need glibc 2.{minor}" in done.stdout
    assert sorted(path.name for path in (site / KERNELS).iterdir()) == [f"{SECOND}.so", "plain.so"]
    made = ctypes.CDLL(str(site / KERNELS / "plain.so"))
    assert made.fs_answer() == 42
    for name in ("other", "_Z6hiddenPKc"):
        with pytest.raises(AttributeError):
            getattr(made, name)
    # and in the same folder none, whatever was built before
    assert build(toy, toy / "none", "").returncode == 0
    tag, site = unpack(toy / "none")
    assert tag == "any" and not (site / KERNELS).exists()


@linux
@pytest.mark.parametrize(("wanted", "machine", "says"), [
    ("plain,sse9", "x86_64", f"'sse9' is not one of all, {', '.join(levels.LEVELS)}"),
    ("all", "riscv64", "is for Linux with glibc on x86-64 or aarch64, and macOS on arm64: leave it unset here"),
])  # fmt: skip
def test_a_wheel_that_cannot_be_is_refused(toy: Path, wanted: str, machine: str, says: str) -> None:
    text = (toy / "setup.py").read_text("utf-8")
    (toy / "setup.py").write_text(text.replace("platform.machine()", repr(machine)))
    done = build(toy, toy / "out", wanted)
    assert done.returncode and says in done.stderr.splitlines()[-1]


@pytest.mark.slow
@linux
@compiled
def test_the_wheels_kernels_are_the_native_ones(tmp_path: Path) -> None:
    """The same bits, without a compiler; every exactness test passes at its best level and at another."""
    source, site = tmp_path / "source", tmp_path / "out"
    ignored = shutil.ignore_patterns(".git", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored, symlinks=True)
    best = usable_levels()[-1]
    done = build(source, site, ",".join({best, SECOND}))
    assert done.returncode == 0, done.stderr
    _, site = unpack(site)
    paths = [str(ROOT / "tests" / "support")]
    bare = {**os.environ, "PYTHONSAFEPATH": "1", "PATH": "/nonexistent"}
    bare.pop(library.VARIABLE, None)

    def run(*command: str, **env: str) -> str:
        command = (sys.executable, *command)
        done = subprocess.run(command, cwd=ROOT, env={**bare, **env}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    def bits(*folders: str, **env: str) -> dict[str, str]:
        path = os.pathsep.join([*folders, *paths])
        found: dict[str, str] = json.loads(run(str(ROOT / "tests/support/kernel_bits.py"), **env, PYTHONPATH=path))
        return found

    of_wheel = bits(str(site), FASTSLOW_CACHE=str(tmp_path / "cache"))
    native = bits(str(ROOT), FASTSLOW_KERNELS="native", PATH=os.environ["PATH"])
    assert of_wheel.pop("level") == best and native.pop("level") == "native" and of_wheel == native
    for level in {best, SECOND}:
        tests = [str(ROOT / "tests" / name) for name in EXACT]
        out = run(
            "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-n", "0", *tests, PYTHONPATH=str(site),
            FASTSLOW_KERNELS=level,
        )  # fmt: skip
        assert " passed" in out and " skipped" not in out
