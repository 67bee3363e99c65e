"""What Windows and macOS lack is refused in one sentence, or replaced. Nothing here ran there."""

import ctypes
import os
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from refusals import refused

from fastslow.engine.backends.cpu.compiled import kernel_cache
from fastslow.engine.host import machine
from fastslow.tools.cli.answering import chat
from fastslow.tools.cli.serve_options import Place


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")


def test_windows_compiles_no_kernels(windows: None) -> None:
    with pytest.raises(RuntimeError, match="the CPU kernels are for Linux and macOS: take WSL on Windows"):
        kernel_cache.build("native")


@pytest.mark.parametrize("given", [{}, {"in_process": True, "unix_socket": "fastslow.sock"}])
def test_a_server_on_windows_has_its_engine_in_its_process(windows: None, given: dict[str, Any]) -> None:
    refused("on Windows an engine needs --in-process, and no --unix-socket", lambda: Place(**given))
    assert Place(in_process=True).in_process


def test_memory_without_sysconf(windows: None, monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> None:
    def installed(to: Any) -> None:
        to._obj.value = 8 << 20  # KiB

    kernel = SimpleNamespace(GetPhysicallyInstalledSystemMemory=installed)
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    monkeypatch.setattr(machine, "_MEMINFO", Path("nowhere"))
    monkeypatch.setattr(machine, "_CGROUP", Path("nowhere"))
    monkeypatch.delattr(os, "sysconf")
    assert machine.whole_memory(torch.device("cpu")) == 8 << 30
    assert machine.free_memory("cpu") == 4 << 30
    assert len([line for line in logged if "half of all memory" in line]) == 1


def test_a_terminal_of_windows_is_read_by_lines(windows: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))  # no file that select knows
    monkeypatch.setattr("builtins.input", lambda _: "Hello")
    assert chat.read_message() == "Hello"


def test_a_checkout_without_links_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(Path(__file__).parents[2] / "setup.py", tmp_path)
    (tmp_path / "fastslow").mkdir()
    (tmp_path / "fastslow/engine").write_text("../engine")
    compiled = Path(kernel_cache.__file__).parent
    shutil.copytree(compiled, tmp_path / "engine/backends/cpu/compiled", ignore=lambda *_: ["prebuilt"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="git clone -c core.symlinks=true"):
        runpy.run_path("setup.py")
