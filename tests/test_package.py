from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fastslow

ROOT = Path(__file__).parents[1]
ROOMS = ("engine", "draft", "policies")
LIMIT = 400

HOLDS_A_MODEL = (
    "engine.types",
    "engine.params",
    "engine.noise",
    "engine.model",
    "engine.kv",
)
# What a file or folder may import of ours, besides its own folder. The first match counts.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "engine/types.py": ("engine.params",),  # for type checkers only
    "engine/params.py": (),
    "engine/llm.py": ("engine", "draft", "policies"),
    "engine/intake.py": ("engine", "policies"),  # composes, too
    "engine/drafting.py": ("engine", "draft"),  # and so does this one
    "engine/cli/corpus.py": ("engine", "draft.suffix"),
    "engine/cli/train_draft.py": ("engine", "draft.train"),  # a workshop, not the engine
    "engine/cli": ("engine", "policies"),
    "engine/tune/choosing": ("engine", "policies"),  # fits a selector, and tells of it
    "engine": ("engine",),
    # a head runs on the target's kernels, and lays its trees out as all do
    "draft/head": (*HOLDS_A_MODEL, "engine.ops.cpu", "draft.base", "draft.merge"),
    "draft/suffix": (
        *HOLDS_A_MODEL,
        "engine.ops.cpu",
        "draft.base",
    ),  # a corpus is searched by the kernels
    "draft": HOLDS_A_MODEL,
    "policies": ("engine.types", "engine.params"),
}


def sources() -> list[Path]:
    inside = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    return sorted([*inside, *(ROOT / "fastslow").glob("*.py")])


def rule(path: str) -> tuple[str, tuple[str, ...]]:
    """The entry of MAY_IMPORT that holds for a file."""
    return next((place, names) for place, names in MAY_IMPORT.items() if path.startswith(place))


def imports(source: str) -> set[str]:
    """Modules of ours that a source imports, wherever in it, without the leading "fastslow."."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names}
            case ast.ImportFrom(module=str(module), level=0, names=names):
                # `from package import module` imports package.module.
                found |= {module} | {f"{module}.{alias.name}" for alias in names}
            case ast.ImportFrom():
                found.add("fastslow.a relative import")
    return {name.removeprefix("fastslow.") for name in found if name.startswith("fastslow.")}


def strangers(path: str, source: str) -> set[str]:
    """What a file imports and must not."""
    place, names = rule(path)
    own = () if place.endswith(".py") or place == "engine" else (place.replace("/", "."),)
    allowed = (*names, *own)
    return {
        name
        for name in imports(source)
        if not any(name == a or name.startswith(f"{a}.") for a in allowed)
    }


@pytest.mark.parametrize(
    "path", [p.relative_to(ROOT).as_posix() for p in sources() if p.parent.name != "fastslow"]
)
def test_rooms_know_only_whom_they_may(path: str) -> None:
    assert strangers(path, (ROOT / path).read_text("utf-8")) == set()


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("engine/core.py", "from fastslow.draft.ngram import NgramDraft"),
        ("engine/core.py", "from fastslow.draft import ngram"),
        ("engine/core.py", "from fastslow import draft"),
        ("engine/kv/cache.py", "import fastslow.policies.modes"),
        ("draft/ngram.py", "from fastslow.engine.core.scheduler import Scheduler"),
        ("draft/ngram.py", "from fastslow.policies.speculation.planner import FixedLength"),
        ("policies/speculation/planner.py", "from fastslow.engine.model.config import ModelConfig"),
        ("engine/params.py", "from fastslow.engine.types import Tree"),
        ("engine/types.py", "from fastslow.engine.kv.cache import KVCache"),
        ("engine/cli/app.py", "from fastslow.draft.build import build_drafter"),
        ("engine/core.py", "from .types import Tree"),
    ],
)
def test_the_rule_sees_a_stranger(path: str, line: str) -> None:
    assert strangers(path, line)


def test_every_package_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    folders = {
        f"fastslow.{init.parent.relative_to(ROOT).as_posix().replace('/', '.')}"
        for room in ROOMS
        for init in (ROOT / room).rglob("__init__.py")
    }
    assert set(listed["packages"]) == {"fastslow", *folders}
    without = {path.parent for path in sources() if not (path.parent / "__init__.py").is_file()}
    assert without == set()


def test_no_source_is_long() -> None:
    kernels = [p for p in (ROOT / "engine/ops/cpu/kernels").iterdir() if p.is_file()]
    lengths = {p: len(p.read_text("utf-8").splitlines()) for p in [*sources(), *kernels]}
    assert {path: n for path, n in lengths.items() if n > LIMIT} == {}


def test_import_is_light() -> None:
    code = (
        "import sys, fastslow\n"
        "fastslow.SamplingParams, fastslow.Speculation, fastslow.Mode, fastslow.__version__\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_every_public_name_is_there() -> None:
    assert set(fastslow.__all__) <= set(dir(fastslow))
    for name in fastslow.__all__:
        assert getattr(fastslow, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'LLMs'"):
        fastslow.LLMs  # noqa: B018


def test_ci_runs_the_readmes_own_test_command() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    commands = [line for line in lines if line.endswith("python -m pytest")]
    assert len(commands) == 1
    assert commands[0] in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
