"""Compiled kernels run from files that nobody else could write, and are made anew where they are damaged."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kernel_tools import compiled
from loguru import logger

from fastslow.engine.backends.cpu import kernel_cache
from fastslow.engine.backends.cpu.library import build, find_compiler

pytestmark = [compiled, pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners here")]
STRANGER = 12345
ANSWER = 'extern "C" int answer() { return 42; }\n'
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away"
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and sources that compile in no time."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "answer.cpp").write_text(ANSWER)
    monkeypatch.setattr(kernel_cache, "SOURCES", sources)
    root = tmp_path / "cache"
    monkeypatch.setenv("FASTSLOW_CACHE", str(root))
    return root


@pytest.fixture
def log() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="INFO")
    yield lines
    logger.remove(sink)


def answer() -> int:
    found: int = kernel_cache.load("plain").answer()
    return found


def rewrite(path: Path, data: bytes) -> None:
    """In a new file: this process has the old one mapped, and runs its end when it ends itself."""
    path.unlink()
    path.write_bytes(data)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    rewrite(path, bytes(data))


def cut(path: Path) -> None:
    rewrite(path, path.read_bytes()[:-5])


def empty(path: Path) -> None:
    rewrite(path, b"")


def replaced_by_link(path: Path) -> None:
    other = path.with_name("other")
    path.rename(other)
    path.symlink_to(other)


def replaced_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replaced_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def given_away(path: Path) -> None:
    os.chown(path, STRANGER, -1)


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (flip, "it is damaged"),
    (cut, "it is damaged"),
    (empty, "it is damaged"),
    (lambda path: path.chmod(0o777), r"others may write to it \(mode 777\)"),
    (replaced_by_link, "symbolic links"),
    (replaced_by_folder, "it is no file"),
    (replaced_by_fifo, "it is no file"),
]


@pytest.mark.parametrize(
    ("change", "reason"),
    [*DAMAGE, pytest.param(given_away, "belongs to another user", marks=as_root)],
)
def test_a_library_that_may_not_run_is_compiled_anew(
    root: Path, log: list[str], change: Callable[[Path], object], reason: str
) -> None:
    path = build("plain")
    change(path)
    log.clear()
    assert answer() == 42
    assert len([line for line in log if "are not used" in line]) == 1
    assert [line for line in log if re.search(reason, line)]
    assert not path.is_symlink() and path.stat().st_uid == os.geteuid()
    log.clear()
    assert answer() == 42 and not log


@pytest.mark.parametrize("place", [".", "kernels"])
def test_a_folder_that_others_may_write_to_is_refused(root: Path, place: str) -> None:
    build("plain")
    (root / place).chmod(0o777)
    with pytest.raises(RuntimeError, match=r"others may write to it \(mode 777\): chmod go-w"):
        build("plain")


@as_root
@pytest.mark.parametrize("place", [".", "kernels"])
def test_another_users_folder_is_refused(root: Path, place: str) -> None:
    build("plain")
    os.chown(root / place, STRANGER, -1)
    with pytest.raises(RuntimeError, match=r"it belongs to another user \(12345\)"):
        build("plain")


@as_root
def test_a_group_of_others_may_not_write_but_the_owners_own_may(root: Path) -> None:
    path = build("plain")
    path.chmod(0o775)
    assert kernel_cache._whole(path)
    os.chown(path, -1, STRANGER)
    assert not kernel_cache._whole(path)


def test_a_folder_that_is_a_link_is_refused(root: Path) -> None:
    build("plain")
    (root / "kernels").rename(root / "elsewhere")
    (root / "kernels").symlink_to(root / "elsewhere")
    with pytest.raises(RuntimeError, match="must be a folder and no link"):
        build("plain")


def test_new_folders_are_not_for_others_to_write(root: Path) -> None:
    before = os.umask(0)
    try:
        assert build("plain").is_file()
        assert answer() == 42
    finally:
        os.umask(before)


@pytest.mark.skipif(not kernel_cache.OWN_FILES.is_dir(), reason="reads Linux's /proc")
def test_what_is_loaded_is_what_was_looked_at(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file takes the library's place in between."""
    path = build("plain")
    whole = kernel_cache._open

    def swapped(path: Path) -> int:
        number = whole(path)
        path.unlink()
        path.write_text("no library")
        return number

    monkeypatch.setattr(kernel_cache, "_open", swapped)
    monkeypatch.setattr(kernel_cache, "build", lambda level: path)
    assert answer() == 42


def test_a_library_of_another_system_is_compiled_anew(root: Path, log: list[str]) -> None:
    path = build("plain")
    data = b"whole, but nothing that this system loads"
    path.write_bytes(data + hashlib.sha256(data).digest())
    log.clear()
    assert answer() == 42
    assert len([line for line in log if "do not load here" in line]) == 1


def test_without_a_compiler_cached_kernels_run(
    root: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    path = build("plain")
    monkeypatch.setenv("CXX", str(root / "no-such-compiler"))
    monkeypatch.setattr(subprocess, "run", None)  # nothing is asked
    log.clear()
    assert build("plain") == path and answer() == 42
    assert [line for line in log if "no C++ compiler was found, cached kernels run" in line]
    with pytest.raises(RuntimeError, match="no C.. compiler was found"):
        build("native")
    flip(path)
    with pytest.raises(RuntimeError, match="no C.. compiler was found"):
        build("plain")
    (kernel_cache.SOURCES / "answer.cpp").write_text(ANSWER.replace("42", "43"))
    with pytest.raises(RuntimeError, match="no C.. compiler was found"):
        build("plain")


NEITHER = """
import sys
from loguru import logger
lines = []
logger.add(lambda message: lines.append(message.record["message"]), level="INFO")
from fastslow.engine.backends.cpu.library import available
logger.enable("fastslow")
assert not available() and not available()
assert len(lines) == 1 and "plain torch runs instead of the CPU kernels" in lines[0], lines
assert "no C++ compiler was found" in lines[0]
"""


def test_with_neither_one_line_says_that_torch_runs(tmp_path: Path) -> None:
    own = {"CXX": str(tmp_path / "none"), "FASTSLOW_CACHE": str(tmp_path / "cache")}
    environment = {**os.environ, **own, "FASTSLOW_KERNELS": "native"}
    subprocess.run([sys.executable, "-c", NEITHER], check=True, timeout=120, env=environment)


SEVERAL = """
import pathlib, sys
from fastslow.engine.backends.cpu import kernel_cache
kernel_cache.SOURCES = pathlib.Path(sys.argv[1])
assert kernel_cache.load("plain").answer() == 42
"""


def test_processes_that_compile_at_once_do_no_harm(root: Path) -> None:
    run = [sys.executable, "-c", SEVERAL, str(kernel_cache.SOURCES)]
    several = [subprocess.Popen(run) for _ in range(4)]
    assert [process.wait(120) for process in several] == [0] * 4
    assert len(list((root / "kernels").iterdir())) == 1


def test_a_killed_compilation_leaves_nothing_that_runs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it links, with half a library written."""
    compiler = tmp_path / "c++"
    real = find_compiler()
    compiler.write_text(
        f'#!/bin/sh\ncase "$*" in *-shared*) for last; do :; done; '
        f'head -c 1000 {real} > "$last"; kill -9 $PPID;; *) exec {real} "$@";; esac\n'
    )
    compiler.chmod(0o755)
    run = [sys.executable, "-c", SEVERAL, str(kernel_cache.SOURCES)]
    environment = {**os.environ, "CXX": str(compiler)}
    assert subprocess.run(run, env=environment, check=False, timeout=120).returncode == -9
    assert not list((root / "kernels").glob("*.so"))
    assert answer() == 42


def test_a_cache_that_cannot_be_written_says_so(root: Path) -> None:
    root.write_text("a file where the folder should be")
    with pytest.raises(RuntimeError, match="kernels cannot be kept in .*FASTSLOW_CACHE"):
        build("plain")


def test_a_folder_in_a_librarys_place_that_is_not_empty_stays(root: Path) -> None:
    path = build("plain")
    replaced_by_folder(path)
    (path / "mine").touch()
    with pytest.raises(RuntimeError, match="the CPU kernels could not be kept in"):
        build("plain")
    assert (path / "mine").exists()


def test_kernels_for_every_chip_are_found_on_another(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an image, which is built on one machine and runs on others, without a compiler."""
    made = {level: build(level) for level in ("plain", "avx2", "native")}
    monkeypatch.setattr(kernel_cache, "_chip", lambda: "another chip")
    assert build("plain") == made["plain"] and build("avx2") == made["avx2"]
    assert build("native") != made["native"]

    def none() -> str:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(kernel_cache, "find_compiler", none)
    assert build("avx2") == made["avx2"]
