"""Breaks the code on purpose, one way at a time, and shows that a test fails for each.

    python tests/mutations.py [NAME...]

`mutations.txt` says what is broken, and how. Works on a temporary copy of the repository. Names are parts
of the mutations' names. Exit code 1 if a broken engine passes, or if the code that a mutation means to
break is not there any more.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOT = Path(__file__).parent.parent
ROOMS = ("fastslow", "engine", "draft", "policies", "serve", "tools")
COPIED = (*ROOMS, "benchmarks", "tests", "pyproject.toml")
PATIENCE = 600  # seconds for the tests of one mutation
EDIT = re.compile(r"((?:^-.*\n)+)((?:^\+.*\n)+)", re.MULTILINE)


@dataclass(frozen=True)
class Mutation:
    """`edits`: (file, code, broken code), each found exactly once. `tests`: who must notice."""

    name: str
    edits: tuple[tuple[str, str, str], ...]
    tests: tuple[str, ...]


def read_mutations(table: str) -> Iterator[Mutation]:
    """The mutations of a table in the form of mutations.txt."""
    for section in re.split(r"^== ", table, flags=re.MULTILINE)[1:]:
        head, _, rest = section.partition("\n")
        file, _, tests = head.partition(": ")
        for block in rest.strip("\n").split("\n\n"):
            name, _, edits = block.partition("\n")
            pairs = EDIT.findall(f"{edits}\n")
            yield Mutation(name, tuple((file, _code(a), _code(b)) for a, b in pairs), tuple(tests.split()))


def _code(marked: str) -> str:
    """Lines without their marks."""
    return "\n".join(line[2:] for line in marked.removesuffix("\n").split("\n"))


MUTATIONS = tuple(read_mutations(Path(__file__).with_suffix(".txt").read_text("utf-8")))


@contextmanager
def broken(copy: Path, mutation: Mutation) -> Iterator[None]:
    """The copy with the edits in place, and as it was afterwards."""
    before: dict[Path, str] = {}
    try:
        for name, old, new in mutation.edits:
            path = copy / name
            text = path.read_text("utf-8")
            before.setdefault(path, text)
            if text.count(old) != 1:
                raise LookupError(f"{name} holds {old!r} {text.count(old)} times, not once")
            path.write_text(text.replace(old, new), "utf-8")
        yield
    finally:
        for path, text in before.items():
            path.write_text(text, "utf-8")


def first_failure(copy: Path, tests: tuple[str, ...]) -> str | None:
    """The first test that fails, or None."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
    env = {**os.environ, "PYTHONPATH": str(copy)}
    try:
        done = subprocess.run(
            [*command, *tests], check=False, cwd=copy, env=env, capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return "a test that did not come to an end"
    if done.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) \S*?::(.+?)(?: - |$)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or failed is None:
        raise RuntimeError(f"the tests did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return failed[1]


def own_package(copy: Path) -> Path:
    """The file of the package that the tests of the copy would import."""
    code = "import fastslow.engine.core.engine_core as c; print(c.__file__)"
    env = {**os.environ, "PYTHONPATH": str(copy)}
    run = subprocess.run([sys.executable, "-c", code], cwd=copy, env=env, check=True, capture_output=True, text=True)
    return Path(run.stdout.strip())


def main(wanted: list[str]) -> int:
    chosen = [m for m in MUTATIONS if not wanted or any(part in m.name for part in wanted)]
    table = Table("mutation", "caught by", "seconds")
    console = Console(width=None if sys.stdout.isatty() else 130)
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder).resolve() / "repo"
        copy.mkdir()
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, copy / name)
        if not own_package(copy).is_relative_to(copy):
            raise RuntimeError(f"the tests would not import the copy but {own_package(copy)}")
        for mutation in chosen:
            started = time.monotonic()
            with broken(copy, mutation):
                failure = first_failure(copy, mutation.tests)
            survived += failure is None
            seconds = f"{time.monotonic() - started:.0f}"
            caught_by = escape(failure or "NOBODY")
            table.add_row(mutation.name, caught_by, seconds)
            console.print(f"{mutation.name}: {caught_by} ({seconds} s)", style="dim")
    console.print(table)
    console.print(f"{len(chosen) - survived} of {len(chosen)} mutations caught")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
