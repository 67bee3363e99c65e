"""The kernels as other chips would run them, and under the sanitizers: the same tests, elsewhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_tools import compiled

from fastslow.engine.backends.cpu import library

ROOT = Path(__file__).parents[3]
KERNEL_TESTS = [
    "engine/cpu/test_cpu_formats.py", "engine/cpu/test_gguf_formats.py", "engine/model/test_model.py",
    "engine/model/test_model_rows.py", "engine/cpu/test_only_best.py", "engine/cpu/test_kernel_checks.py",
    "engine/kv/test_kv_storage.py", "draft/test_draft_kernels.py", "draft/test_eagle.py", "draft/test_head.py",
    "draft/test_suffix.py", "engine/cpu/test_running_kernels.py",
]  # fmt: skip


def run(level: str, *tests: str, **variables: str) -> None:
    """Run tests in a separate process, whose kernels are of another level."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *(str(ROOT / "tests" / test) for test in tests)], cwd=ROOT,
        env={**os.environ, library.VARIABLE: level, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " skipped" not in done.stdout


def test_what_runs_at_other_levels_is_there() -> None:
    assert all((ROOT / "tests" / test).is_file() for test in KERNEL_TESTS)


def where(compiler: str, library: str) -> Path:
    """The path at which the compiler finds a library; a bare name if it does not."""
    done = subprocess.run([compiler, f"-print-file-name={library}"], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


def has_avx2() -> bool:
    info = Path("/proc/cpuinfo")
    return info.is_file() and all(f" {flag} " in info.read_text() for flag in ("avx2", "fma"))


@pytest.mark.slow
@compiled
@pytest.mark.parametrize("level", ["avx2", "plain"])
def test_other_chips(level: str) -> None:
    if level == "avx2" and not has_avx2():
        pytest.skip("this chip has no AVX2")
    run(level, *KERNEL_TESTS, OMP_NUM_THREADS="2")


@pytest.mark.slow
@compiled
@pytest.mark.parametrize("level", ["native", "plain"])
def test_sanitizers(level: str) -> None:
    compiler = library.find_compiler()
    # the second: without it the first finds nothing after an exception that kernels throw
    found = [where(compiler, name) for name in ("libasan.so", "libstdc++.so")]
    if not all(path.is_absolute() for path in found):
        pytest.skip(f"{compiler} has no address sanitizer")
    run(
        f"{level}+sanitize",
        *KERNEL_TESTS,
        OMP_NUM_THREADS="2",
        LD_PRELOAD=" ".join(map(str, found)),
        # Python leaks on purpose; gcc 12 misaligns 64-byte locals on its fake stack
        ASAN_OPTIONS="detect_leaks=0:detect_stack_use_after_return=0",
    )


def test_an_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, "sse9")
    with pytest.raises(ValueError, match="FASTSLOW_KERNELS='sse9' is not one of auto, native, plain"):
        library.level()


def test_a_failing_compiler_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'x.cpp:1: error: out of ink' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("FASTSLOW_CACHE", str(tmp_path / "cache"))
    with pytest.raises(RuntimeError, match="could not compile the CPU kernels .*out of ink"):
        library.build("native")
    assert not list((tmp_path / "cache" / "kernels").iterdir())
