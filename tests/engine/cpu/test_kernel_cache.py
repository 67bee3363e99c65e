"""Compiled kernels run from files that nobody else could write, and are made anew where they are damaged."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Lock

import pytest
from kernel_tools import compiled

from fastslow.engine.backends.cpu.compiled import kernel_cache
from fastslow.engine.backends.cpu.compiled.compiler import _stop
from fastslow.engine.backends.cpu.library import build, find_compiler

pytestmark = [compiled, pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners here")]
STRANGER = 12345
ANSWER = 'extern "C" __attribute__((visibility("default"))) int fs_answer() { return 42; }\n'
as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new cache, and sources that compile in no time."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "answer.cpp").write_text(ANSWER)
    monkeypatch.setattr(kernel_cache, "SOURCES", sources)
    root = tmp_path / "cache"
    monkeypatch.setenv("FASTSLOW_CACHE", str(root))
    return root


def answer() -> int:
    found: int = kernel_cache.load("plain").fs_answer()
    return found


def rewrite(path: Path, data: bytes) -> None:
    """In a new file: this process has the old one mapped, and runs its end when it ends itself."""
    path.unlink()
    path.write_bytes(data)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    rewrite(path, bytes(data))


def replace(path: Path, make: Callable[[Path], object]) -> None:
    path.rename(path.with_name("other"))
    make(path)


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (flip, "it is damaged"),
    (lambda path: rewrite(path, path.read_bytes()[:-5]), "it is damaged"),
    (lambda path: rewrite(path, b""), "it is damaged"),
    (lambda path: path.chmod(0o777), r"others may write to it \(mode 777\)"),
    (lambda path: replace(path, lambda p: p.symlink_to(p.with_name("other"))), "symbolic links"),
    (lambda path: replace(path, os.mkdir), "it is no file"),
    (lambda path: replace(path, os.mkfifo), "it is no file"),
]


STRANGERS = pytest.param(
    lambda path: os.chown(path, STRANGER, -1), r"it belongs to another user \(12345\)", marks=as_root
)


@pytest.mark.parametrize(("change", "reason"), [*DAMAGE, STRANGERS])
def test_a_library_that_may_not_run_is_compiled_anew(
    root: Path, logged: list[str], change: Callable[[Path], object], reason: str
) -> None:
    path = build("plain")
    change(path)
    logged.clear()
    assert answer() == 42 and len([line for line in logged if "are not used" in line]) == 1
    assert [line for line in logged if re.search(reason, line)]
    assert not path.is_symlink() and path.stat().st_uid == os.geteuid()
    logged.clear()
    assert answer() == 42 and not logged


@pytest.mark.parametrize("place", [".", "kernels"])
@pytest.mark.parametrize(
    ("change", "reason"), [(lambda path: path.chmod(0o777), r"may write to it \(mode 777\): chmod go-w"), STRANGERS]
)
def test_a_folder_that_others_may_write_to_is_refused(
    root: Path, place: str, change: Callable[[Path], object], reason: str
) -> None:
    build("plain")
    change(root / place)
    with pytest.raises(RuntimeError, match=reason):
        build("plain")


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
    monkeypatch.setattr(kernel_cache, "build", lambda *_: path)
    assert answer() == 42


def test_without_a_compiler_cached_kernels_run(root: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> None:
    path = build("plain")
    monkeypatch.setenv("CXX", str(root / "no-such-compiler"))
    monkeypatch.setattr(subprocess, "run", None)  # nothing is asked
    logged.clear()
    assert build("plain") == path and answer() == 42
    assert [line for line in logged if "cached kernels run" in line and "no-such-compiler' is no program" in line]
    none = r"no-such-compiler' is no program \(arguments are not read\): install a C.. compiler"
    with pytest.raises(RuntimeError, match=none):
        build("native")
    flip(path)
    with pytest.raises(RuntimeError, match=none):
        build("plain")
    (kernel_cache.SOURCES / "answer.cpp").write_text(ANSWER.replace("42", "43"))
    with pytest.raises(RuntimeError, match=none):
        build("plain")


def test_kernels_for_every_chip_are_found_on_another(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an image, which is built on one machine and runs on others, without a compiler."""
    made = {level: build(level) for level in ("plain", "avx2", "native")}
    monkeypatch.setattr(kernel_cache, "_chip", lambda: "another chip")
    assert build("plain") == made["plain"] and build("avx2") == made["avx2"]
    assert build("native") != made["native"]

    def none() -> str:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(kernel_cache, "find_compiler", none)
    assert build("avx2") == made["avx2"]


def compiler_that(root: Path, does: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CXX, which does something first; the file that it may write to."""
    wrapper, said = root.with_name("c++"), root.with_name("said")
    wrapper.write_text(f'#!/bin/sh\nsaid={said}\n{does}\nexec {find_compiler()} "$@"\n')
    wrapper.chmod(0o755)
    said.touch()
    monkeypatch.setenv("CXX", str(wrapper))
    return said


def test_what_is_prepared_is_waited_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = compiler_that(root, 'echo "$@" >> $said; sleep 0.2', monkeypatch)
    monkeypatch.setenv("FASTSLOW_KERNELS", "plain")
    monkeypatch.setattr(kernel_cache, "_begun", [])
    kernel_cache.prepare("cuda")
    assert not kernel_cache._begun
    for _ in range(3):
        kernel_cache.prepare("cpu")
    assert kernel_cache._begun == ["cpu"] and answer() == 42
    assert len([line for line in said.read_text().splitlines() if " -c " in line]) == 1


def test_formats_of_files_are_compiled_when_they_are_needed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (kernel_cache.SOURCES / "file_formats.cpp").write_text(ANSWER.replace("42", "43"))
    said = compiler_that(root, 'echo "$@" >> $said', monkeypatch)
    assert answer() == 42 and "file_formats" not in said.read_text()
    assert kernel_cache.load("plain", kernel_cache.FILE).fs_answer() == 43
    said.write_text("")
    assert kernel_cache.load("plain", kernel_cache.FILE).fs_answer() == 43
    assert answer() == 42 and " -c " not in said.read_text()


def test_headers_that_cannot_be_read_ahead_are_read_by_each(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (kernel_cache.SOURCES / "precompiled.h").write_text("#include <cstdint>\n")
    fails = 'echo "error: had to relocate PCH" >&2; exit 1'
    compiler_that(root, f'case "$*" in *-include*) {fails};; esac', monkeypatch)
    assert answer() == 42 and not list((root / "kernels").glob(".*"))


ENDS = """
import os, sys, time
from pathlib import Path
from fastslow.engine.backends.cpu.compiled import kernel_cache

kernel_cache.SOURCES = Path(sys.argv[1])
kernel_cache.prepare("auto")
while not Path(sys.argv[2]).read_text().endswith("\\n"):
    time.sleep(0.01)
if not (child := os.fork()):
    sys.exit()
os.waitpid(child, 0)
with open(sys.argv[2], "a") as said:
    said.write("a fork ended\\n")
"""


def test_no_compiler_runs_on_when_the_process_ends(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = "trap 'echo ended >> $said; exit 1' TERM; echo begun >> $said; sleep 60 & wait"
    said = compiler_that(root, f'if [ "$2" ]; then {waits}; fi', monkeypatch)
    monkeypatch.setenv("FASTSLOW_KERNELS", "plain")
    command = [sys.executable, "-W", "ignore", "-c", ENDS, str(kernel_cache.SOURCES), str(said)]
    assert subprocess.run(command, timeout=30, check=True, capture_output=True).stderr == b""
    assert said.read_text() == "begun\na fork ended\nended\n"


def test_whoever_takes_one_off_the_list_every_compiler_is_ended() -> None:
    """The thread that waits for the first notes its end, and takes it off, while they are ended."""

    class Compiler(subprocess.Popen[str]):
        def wait(self, timeout: float | None = None) -> int:
            running.remove(self)
            return super().wait(timeout)

    running = list[subprocess.Popen[str]]()
    started = [Compiler(["sleep", "60"], start_new_session=True) for _ in range(3)]
    running += started
    try:
        _stop(running, Lock(), os.getpid())
        assert [one.poll() for one in started] == [-signal.SIGTERM] * 3
    finally:
        for one in started:
            one.kill()
