"""FASTSLOW_BUILD_LEVELS=all, or a list such as avx2,vnni, puts compiled kernels into a wheel: for Linux on x86-64 or
aarch64, or for macOS on Apple's chips.

Without it nothing is compiled: the wheel is for every system, and kernels are compiled at first use.
"""

import os
import platform
import re
import runpy
import shutil
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

CPU = Path(__file__).parent / "engine" / "backends" / "cpu"
LEVELS, COMPILER = (
    runpy.run_path(str(CPU / "compiled" / f"{name}.py")) for name in ("levels", "compiler")
)
VARIABLE = "FASTSLOW_BUILD_LEVELS"
GLIBC = 2, 28  # which the tag names, unless the libraries need a newer one
INTO = "fastslow/engine/backends/cpu/compiled/prebuilt"


if Path(
    "fastslow/engine"
).is_file():  # git makes such files where links are switched off, as on Windows
    raise SystemExit("links of this checkout are plain files: git clone -c core.symlinks=true")


def wanted() -> list[str]:
    """The levels to compile; SystemExit in one sentence where they cannot be."""
    given = os.environ.get(VARIABLE, "")
    known = LEVELS["LEVELS"]
    names = known if given == "all" else [name.strip() for name in given.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"{VARIABLE}: {unknown[0]!r} is not one of all, {', '.join(known)}")
    linux = platform.libc_ver()[0] == "glibc" and platform.machine() in ("x86_64", "aarch64")
    if names and not linux and (platform.system(), platform.machine()) != ("Darwin", "arm64"):
        raise SystemExit(
            f"{VARIABLE} is for Linux with glibc on x86-64 or aarch64, and macOS on arm64: leave it unset here"
        )
    return names


class Project(Distribution):
    def has_ext_modules(self) -> bool:
        return bool(wanted())


class BuildKernels(build_py):
    """The Python files and, beside them, a library for each level."""

    def run(self) -> None:
        super().run()
        into = Path(self.build_lib, INTO)
        shutil.rmtree(into, ignore_errors=True)  # of an earlier build in the same folder
        if wanted() and self.editable_mode:
            raise SystemExit(f"{VARIABLE} is for wheels: an editable install compiles at first use")
        for level in wanted():
            into.mkdir(parents=True, exist_ok=True)
            self.make_library(level, into / f"{level}.so")

    def make_library(self, level: str, library: Path) -> None:
        work = Path(self.get_finalized_command("build").build_temp, level)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        exports = (
            work / "exports"
        )  # the C functions alone: another C++ library lies in the same process
        exports.write_text("{ global: fs_*; local: *; };")
        link = ["-static-libstdc++", "-static-libgcc", "-s", f"-Wl,--version-script={exports}"]
        if platform.system() == "Darwin":  # whose C++ library every system has
            exports.write_text("_fs_*\n")
            link = [f"-Wl,-exported_symbols_list,{exports}"]
        command = [COMPILER["find_compiler"](), *COMPILER["FLAGS"], *LEVELS["level_flags"](level)]
        print(f"compiling the CPU kernels ({level})", flush=True)
        sources = sorted((CPU / "kernels").glob("*.cpp"))
        COMPILER["compile_library"](command, sources, work, library, *link)


class Wheel(bdist_wheel):
    """Wheel for every Python 3 and, with kernels inside, for every Linux with the glibc that they need, or macOS."""

    def get_tag(self) -> tuple[str, str, str]:
        if not wanted():
            return super().get_tag()
        if platform.system() == "Darwin":
            target = (
                os.environ.get("MACOSX_DEPLOYMENT_TARGET") or platform.mac_ver()[0]
            )  # as the compiler's
            return "py3", "none", f"macosx_{target.partition('.')[0]}_0_arm64"
        needed = GLIBC
        for library in Path(self.bdist_dir).rglob("prebuilt/*.so"):
            for major, minor in re.findall(rb"GLIBC_(\d+)\.(\d+)", library.read_bytes()):
                needed = max(needed, (int(major), int(minor)))
        if needed > GLIBC:
            print(
                f"the kernels need glibc {needed[0]}.{needed[1]}, as the compiler's own libraries do: the tag says so"
            )
        return "py3", "none", f"manylinux_{needed[0]}_{needed[1]}_{platform.machine()}"


setup(distclass=Project, cmdclass={"build_py": BuildKernels, "bdist_wheel": Wheel})
