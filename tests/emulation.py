"""Run the project as an Arm processor would, under qemu: `python tests/emulation.py [--level L] [COMMAND ...]`.

It makes an aarch64 Python of Debian's packages, torch and the other dependencies from PyPI, and compiles kernels by a
cross compiler. Without a command the kernel tests run at every level, and a model answers. Bits are a chip's, times
are not. The first run fetches 400 MB.
"""

import argparse
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "aarch64"
NEEDED = ("qemu-aarch64", "aarch64-linux-gnu-g++", "apt-get", "dpkg", "unzip")
INSTALL = "apt-get install --no-install-recommends qemu-user g++-aarch64-linux-gnu unzip"
CHIPS = {"plain": "cortex-a53", "neon": "cortex-a53", "dotprod": "neoverse-n1", "i8mm": "neoverse-v1"}
APT = """APT::Architecture "arm64"; APT::Architectures {{ "arm64"; }}; APT::Install-Recommends "false";
APT::Sandbox::User "root"; Debug::NoLocking "true";
Dir::State "{0}"; Dir::State::status "{0}/status"; Dir::State::Lists "{0}/lists"; Dir::Cache "{0}/cache";
"""
TORCH = "torch==2.9.1"  # PyPI's newest for aarch64 that needs no CUDA
WHEELS = """numpy sentencepiece tokenizers safetensors pydantic loguru jinja2 rich typer gguf huggingface_hub filelock
typing_extensions networkx fsspec sympy pytest pytest-xdist hypothesis jsonschema transformers protobuf pyyaml httpx
setuptools"""
GLIBC = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_26", "manylinux_2_17", "manylinux2014")
TESTS = ("engine/cpu/test_cpu_formats.py", "engine/cpu/test_gguf_formats.py", "engine/cpu/test_same_bits.py",
         "engine/cpu/test_only_best.py", "engine/kv/test_kv_storage.py", "engine/core/test_exact.py")  # fmt: skip
NOT = "not without_faults"  # qemu says yes to MADV_POPULATE_WRITE and takes no memory
ANSWER = ("generate", "What is 12 + 30?", "--model", "abacus")


def lacking() -> list[str]:
    """The programs that are not here."""
    return [name for name in NEEDED if not shutil.which(name)]


def call(*command: str | Path, **variables: str) -> None:
    subprocess.run(command, check=True, env={**os.environ, **variables})


def make_root(root: Path) -> None:
    """Python for aarch64: nothing is installed, packages are fetched and unpacked."""
    state = root.parent / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (state / name).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    (state / "conf").write_text(APT.format(state))
    env = {"APT_CONFIG": str(state / "conf")}
    call("apt-get", "-q", "update", **env)
    call("apt-get", "-qy", "install", "--download-only", "python3", "libgomp1", "libstdc++6", **env)
    for package in (state / "cache/archives").glob("*.deb"):
        call("dpkg", "-x", package, root)
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")


def make_python(root: Path) -> Path:
    """A program of this machine that runs the other's Python, and is what that calls sys.executable."""
    python = next(path for path in sorted((root / "usr/bin").glob("python3.*")) if path.suffix[1:].isdigit())
    real = python.with_name(f"real-{python.name}")
    if not real.exists():
        python.rename(real)
    words = shlex.join([shutil.which("qemu-aarch64") or "", "-L", str(root)])
    python.write_text(f'#!/bin/sh\nexec {words} -0 "$0" {shlex.quote(str(real))} "$@"\n')
    python.chmod(0o755)
    return python


def make_site(site: Path, version: str) -> None:
    """The packages; torch without what its CUDA would need."""
    wheels = site.parent / "wheels"
    tags = [x for glibc in GLIBC for x in ("--platform", f"{glibc}_aarch64")]
    tags += ["--python-version", version, "--implementation", "cp", "--only-binary=:all:"]
    tags += [x for abi in (f"cp{version.replace('.', '')}", "abi3", "none") for x in ("--abi", abi)]
    pip = [sys.executable, "-m", "pip", "download", "-q", "-d", str(wheels), *tags]
    call(*pip, "--no-deps", TORCH)
    call(*pip, *WHEELS.split())
    for wheel in wheels.glob("*.whl"):
        call("unzip", "-qo", wheel, "-d", site)


def make(folder: Path) -> Path:
    """Everything that is not there yet. Returns Python."""
    if missing := lacking():
        raise SystemExit(f"not found: {', '.join(missing)}; on Debian: {INSTALL}")
    root, site = folder / "root", folder / "site"
    done = folder / "done"
    if done.is_file():
        return Path(done.read_text().strip())
    make_root(root)
    python = make_python(root)
    version = python.name.removeprefix("python")
    make_site(site, version)
    if native := shutil.which(python.name):  # to compile thousands of modules is slow under emulation
        call(native, "-m", "compileall", "-q", "-j", "0", site, root / f"usr/lib/{python.name}")
    done.write_text(str(python))
    return python


def cpu_seconds() -> float:
    """What processes that have ended took, compilers too."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def unpacked(wheel: Path, folder: Path) -> Path:
    """A wheel's files, and none of another."""
    into = folder / "wheel"
    shutil.rmtree(into, ignore_errors=True)
    call("unzip", "-qo", wheel, "-d", into)
    return into


def run(python: Path, level: str, command: Sequence[str], chip: str = "", source: Path = ROOT) -> int:
    """A command of Python's, as `pytest` or `fastslow`, on a chip that has the level. No compiler is in reach of files
    of a wheel."""
    site = python.parents[3] / "site"
    env = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{source}", "QEMU_CPU": chip or CHIPS[level]}
    env |= {"FASTSLOW_KERNELS": level, "CXX": os.environ.get("CXX", NEEDED[1]), "PYTHONSAFEPATH": "1"}
    if source != ROOT:
        env |= {"CXX": "", "PATH": "/nonexistent"}
    started, before = time.perf_counter(), cpu_seconds()
    done = subprocess.run([python, "-m", *command], cwd=ROOT, env=env, check=False)
    took = f"{cpu_seconds() - before:.0f} s of a core, {time.perf_counter() - started:.0f} s"
    print(f"{level} on {env['QEMU_CPU']}: {done.returncode}, {took}", flush=True)
    return done.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--level", choices=CHIPS, help="one level; default: all")
    parser.add_argument("--chip", default="", help="a processor that qemu knows; default: one that has the level")
    parser.add_argument("--wheel", type=Path, help="run its files and kernels, with no compiler in reach")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where all is kept (%(default)s)")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, help="a module and its arguments, such as pytest tests/x.py"
    )
    given = parser.parse_args()
    python = make(given.folder.resolve())
    source = unpacked(given.wheel, given.folder.resolve()) if given.wheel else ROOT
    tests = ["pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", NOT, *(f"tests/{name}" for name in TESTS)]
    commands = [given.command] if given.command else [tests, ["fastslow", *ANSWER]]
    levels = [given.level] if given.level else list(CHIPS)
    return max(run(python, level, command, given.chip, source) for level in levels for command in commands)


if __name__ == "__main__":
    sys.exit(main())
