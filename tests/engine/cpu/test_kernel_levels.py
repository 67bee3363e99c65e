"""The kernels that run: the best level that a wheel brings and the chip has, or the one that a variable names."""

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kernel_tools import compiled
from refusals import refused

from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.compiled import kernel_cache, levels
from fastslow.tools.cli.doctor import _kernels

V3 = "avx2 fma f16c bmi1 bmi2 abm movbe"
V4 = f"{V3} avx512f avx512bw avx512dq avx512vl avx512cd"
CHIPS = {  # what Linux shows of them
    "none": "sse4_2", "Zen 3": V3, "Alder Lake": f"{V3} avx_vnni", "Skylake": V4, "Ice Lake": f"{V4} avx512_vnni",
    "Zen 4": f"{V4} avx512_vnni avx512_bf16",
    "Zen 5": f"{V4} avx_vnni avx512_vnni avx512_bf16",
    "Sapphire Rapids": f"{V4} avx_vnni avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8",
}  # fmt: skip
ARM_CHIPS = {
    "Cortex-A53": "fp asimd aes crc32", "Neoverse N1": "fp asimd fphp asimdhp asimddp",
    "Apple M1": "fp asimd asimddp bf16", "Neoverse V1": "fp asimd asimddp i8mm bf16 sve",
}  # fmt: skip


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel's folder with every level, on an x86 chip that is not known, whose tiles may be used."""
    use(monkeypatch, levels.X86_ADDED)
    folder = tmp_path / "prebuilt"
    folder.mkdir()
    for name in [*levels.X86_ADDED, *levels.ARM_ADDED]:
        (folder / f"{name}.so").write_text("no library")
    monkeypatch.setattr(kernel_cache, "PREBUILT", folder)
    monkeypatch.setattr(kernel_cache, "amx_permitted", lambda: True)
    monkeypatch.setattr(levels, "INFO", tmp_path / "cpuinfo")
    monkeypatch.delenv(library.VARIABLE, raising=False)
    kernel_cache._tiles.cache_clear()
    return folder


def use(monkeypatch: pytest.MonkeyPatch, added: dict[str, str]) -> None:
    """Have one machine's levels, whatever this is."""
    monkeypatch.setattr(levels, "ARM", added is levels.ARM_ADDED)
    for module in (levels, kernel_cache):
        monkeypatch.setattr(module, "ADDED", added)
        monkeypatch.setattr(module, "LEVELS", list(added))


def on(chip: str) -> None:
    shown = f"Features\t: {ARM_CHIPS[chip]}" if chip in ARM_CHIPS else f"flags\t\t: fpu {CHIPS[chip]}"
    levels.INFO.write_text(f"processor: 0\n{shown}\nbugs\t\t:\n")


BEST = ["plain", "avx2", "avxvnni", "avx512", "avx512", "vnni", "vnni", "amx"]


@pytest.mark.parametrize(("chip", "runs"), list(zip(CHIPS, BEST, strict=True)))
def test_the_best_that_the_chip_has_runs(wheel: Path, chip: str, runs: str) -> None:
    on(chip)
    assert library.level() == runs
    (wheel / f"{runs}.so").unlink()
    below = [
        name for name in levels.LEVELS[: levels.LEVELS.index(runs)] if name != "avxvnni" or "avx_vnni" in CHIPS[chip]
    ]
    assert library.level() == (below[-1] if below else "native")


def test_what_avxvnni_adds_is_in_no_level_above(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, levels.X86_ADDED)
    assert [name for name in levels.LEVELS if "-mavxvnni" in levels.level_flags(name)] == ["avxvnni"]
    assert set(levels.level_flags("avx2")) < set(levels.level_flags("avxvnni"))


@pytest.mark.parametrize(("chip", "runs"), list(zip(ARM_CHIPS, ["neon", "dotprod", "dotprod", "i8mm"])))
def test_an_arm_chip_has_levels_of_its_own(wheel: Path, chip: str, runs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, levels.ARM_ADDED)
    on(chip)
    assert library.level() == runs
    monkeypatch.setenv(library.VARIABLE, "i8mm")
    if runs == "i8mm":
        assert levels.level_flags(library.level()) == ["-march=armv8-a+simd+dotprod+i8mm+bf16"]
    else:
        refused("=i8mm is above this chip, which has no ", library.level)
    monkeypatch.setenv(library.VARIABLE, "avx2")
    refused("='avx2' is not one of auto, native, plain, neon, dotprod, i8mm, off", library.level)


@pytest.mark.parametrize(("has", "level"), [("FEAT_DotProd", "dotprod"), ("FEAT_", "i8mm"), ("no", "neon")])
def test_an_apple_chip_is_asked(has: str, level: str, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By sysctl, which a test has to stand in for."""

    def sysctlbyname(name: bytes, to: Any, size: Any, new: None, length: int) -> int:
        assert size._obj.value == 4 and name.startswith(b"hw.optional.arm.FEAT_")
        to._obj.value = 1
        return -(has not in name.decode())

    use(monkeypatch, levels.ARM_ADDED)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(sysctlbyname=sysctlbyname))
    assert library.level() == level


@pytest.mark.parametrize(("refuses", "flags"), [
    ("", ["-march=native"]), ("march=native", ["-mcpu=native"]), ("native", ["-march=armv8-a+simd+dotprod"]),
    ("native,dotprod", ["-march=armv8-a+simd"]), ("m", []),
])  # fmt: skip
def test_native_is_what_the_compiler_takes(
    wheel: Path, refuses: str, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    use(monkeypatch, levels.ARM_ADDED)
    on("Neoverse N1")
    compiler = tmp_path / "c++"
    cases = "".join(f"case $1 in *{word}*) exit 1;; esac\n" for word in refuses.split(",") if word)
    compiler.write_text(f"#!/bin/sh\n{cases}")
    compiler.chmod(0o755)
    assert sorted(kernel_cache._taken(str(compiler), ["-O3", "-march=native"])) == sorted([*flags, "-O3"])
    assert len([line for line in logged if "takes no -march=native" in line]) == bool(refuses)


def test_where_the_chip_is_not_known_the_plainest_runs(wheel: Path) -> None:
    assert library.level() == "plain"  # no /proc/cpuinfo: another system


@pytest.mark.parametrize(("chip", "level", "says"), [
    ("Zen 4", "avxvnni", "=avxvnni is above this chip, which has no avx_vnni"),
    ("Zen 3", "avx512", "=avx512 is above this chip, which has no avx512f, avx512bw"),
    ("Zen 4", "amx", "=amx is above this chip, which has no amx_tile, amx_int8, amx_bf16"),
    ("Skylake", "vnni+sanitize", r"=vnni\+sanitize is above this chip, which has no avx512_vn"),
])  # fmt: skip
def test_a_level_above_the_chip_is_refused(
    wheel: Path, chip: str, level: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(chip)
    monkeypatch.setenv(library.VARIABLE, level)
    refused(says, library.level)


def test_without_permission_kernels_without_tiles_run(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    on("Sapphire Rapids")
    assert kernel_cache._chosen("native") == ["-march=native"]
    kernel_cache._tiles.cache_clear()
    monkeypatch.setattr(kernel_cache, "amx_permitted", lambda: False)
    assert library.level() == "vnni"
    monkeypatch.setattr(library, "kernels", lambda: None)
    monkeypatch.setattr(library, "read_bandwidth", lambda *_: 1.0)
    said = next(_kernels()).said
    assert said.startswith("vnni, from the wheel") and said.endswith("this chip has vnni")
    assert kernel_cache._chosen("native") == ["-march=native", "-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16"]
    assert len([line for line in logged if "Linux refuses matrix tiles" in line]) == 1
    monkeypatch.setenv(library.VARIABLE, "amx")
    refused("=amx is refused by Linux", library.level)
    on("Zen 4")
    assert kernel_cache._chosen("native") == ["-march=native"]


@compiled
def test_a_wheels_library_that_does_not_load_is_compiled(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "none.cpp").write_text("")
    monkeypatch.setattr(kernel_cache, "SOURCES", sources)
    monkeypatch.setenv("FASTSLOW_CACHE", str(tmp_path / "cache"))
    kernel_cache.load("plain")
    assert len([line for line in logged if "the wheel's kernels do not load here" in line]) == 1
    assert list((tmp_path / "cache/kernels").glob("plain-*.so"))
