"""The kernels that run: the best level that a wheel brings and the chip has, or the one that a variable names."""

from pathlib import Path

import pytest
from kernel_tools import compiled
from refusals import refused

from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.compiled import kernel_cache, levels
from fastslow.tools.cli.doctor import _kernels

V3 = "avx2 fma f16c bmi1 bmi2 abm movbe"
V4 = f"{V3} avx512f avx512bw avx512dq avx512vl avx512cd"
CHIPS = {  # what Linux shows of them
    "none": "sse4_2", "Zen 3": V3, "Skylake": V4, "Ice Lake": f"{V4} avx512_vnni",
    "Zen 4": f"{V4} avx512_vnni avx512_bf16",
    "Sapphire Rapids": f"{V4} avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8",
}  # fmt: skip


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel's folder with every level, on a chip that is not known, whose tiles may be used."""
    folder = tmp_path / "prebuilt"
    folder.mkdir()
    for name in levels.LEVELS:
        (folder / f"{name}.so").write_text("no library")
    monkeypatch.setattr(kernel_cache, "PREBUILT", folder)
    monkeypatch.setattr(kernel_cache, "amx_permitted", lambda: True)
    monkeypatch.setattr(levels, "INFO", tmp_path / "cpuinfo")
    monkeypatch.delenv(library.VARIABLE, raising=False)
    kernel_cache._tiles.cache_clear()
    return folder


def on(chip: str) -> None:
    levels.INFO.write_text(f"processor: 0\nflags\t\t: fpu {CHIPS[chip]}\nbugs\t\t:\n")


@pytest.mark.parametrize(("chip", "runs"), list(zip(CHIPS, ["plain", "avx2", "avx512", "avx512", "vnni", "amx"])))
def test_the_best_that_the_chip_has_runs(wheel: Path, chip: str, runs: str) -> None:
    on(chip)
    assert library.level() == runs
    (wheel / f"{runs}.so").unlink()
    below = levels.LEVELS[: levels.LEVELS.index(runs)]
    assert library.level() == (below[-1] if below else "native")


def test_where_the_chip_is_not_known_the_plainest_runs(wheel: Path) -> None:
    assert library.level() == "plain"  # no /proc/cpuinfo: another system


@pytest.mark.parametrize(("chip", "level", "says"), [
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
