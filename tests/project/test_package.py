"""The house: rooms whose arrows go down only, no circles, files of a readable size, the public names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import fastslow

ROOT = Path(__file__).parents[2]
LIMIT = 400  # lines of a file

# Rooms, and the folders inside engine/, from the ground up. A file imports from its own folder and
# from floors below it; places on one floor do not know each other.
FLOORS = (
    ("engine",),  # files beside the folders: what all others speak of
    ("engine.host",),
    ("engine.text", "engine.kv"),
    ("engine.model",),
    ("engine.checkpoint",),
    ("engine.backends",),
    ("engine.parallel",),
    ("engine.sampling",),
    ("engine.core",),
    ("draft", "policies", "engine.families"),
    ("fastslow",),
    ("serve",),
    ("tools",),
)
PLACES = {place: floor for floor, places in enumerate(FLOORS) for place in places}


def sources() -> dict[str, str]:
    """Every module of ours by name, without the leading "fastslow." of the rooms, with its text."""
    found = {}
    rooms = sorted({place.partition(".")[0] for place in PLACES})
    for path in [p for room in rooms for p in (ROOT / room).rglob("*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] == "fastslow" and len(parts) > 2 and parts[1] in rooms:
            continue  # the links by which the rooms are installed
        name = ".".join(parts).removesuffix(".__init__")
        found[name] = path.read_text("utf-8")
    return found


def place_of(module: str) -> str:
    """The place of PLACES that a module lies in."""
    parts = module.split(".")
    inner = ".".join(parts[:2])
    return inner if inner in PLACES else parts[0]


@cache
def statements(source: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(source)))


def imports(source: str, modules: set[str]) -> Iterator[str]:
    """Modules of ours that a source imports, wherever in it and for whatever."""
    for node in statements(source):
        names: list[str] = []
        match node:
            case ast.Import(names=aliases):
                names = [alias.name for alias in aliases]
            case ast.ImportFrom(module=str(module), level=0, names=aliases):
                # `from package import module` imports package.module
                for alias in aliases:
                    inner = f"{module}.{alias.name}"
                    names.append(inner if _room(inner) in modules else module)
            case ast.ImportFrom():
                raise ValueError("a relative import")
        yield from (_room(name) for name in names if name.split(".")[0] == "fastslow")


def _room(name: str) -> str:
    """A module as `sources` calls it."""
    inner = name.removeprefix("fastslow.")
    return inner if inner.split(".")[0] in {p.partition(".")[0] for p in PLACES} else name


def graph(files: dict[str, str]) -> dict[str, set[str]]:
    names = set(files)
    return {name: set(imports(text, names)) & names - {name} for name, text in files.items()}


def arrows_up(arrows: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Imports that do not go down: from a file to one of another place on its floor, or above."""
    return sorted(
        (a, b)
        for a, others in arrows.items()
        for b in others
        if place_of(a) != place_of(b) and PLACES[place_of(b)] >= PLACES[place_of(a)]
    )


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Files that import each other, one after the other; the first circle that is found."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


FILES = sources()


def test_arrows_go_down() -> None:
    assert arrows_up(graph(FILES)) == []


def test_no_files_import_each_other() -> None:
    assert circle(graph(FILES)) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("engine.core.engine_core", "from fastslow.draft.ngram import NgramDraft"),
        ("engine.core.engine_core", "from fastslow.draft import ngram"),
        ("engine.core.engine_core", "from fastslow import LLM"),
        ("engine.kv.cache", "import fastslow.policies.modes"),
        ("engine.kv.cache", "from fastslow.engine.core.scheduler import Scheduler"),
        ("engine.model.base", "from fastslow.engine.backends.loader import load_model"),
        ("engine.model.config", "from fastslow.engine.families import FAMILIES"),
        ("engine.backends.loader", "from fastslow.engine.families import gpt_oss"),
        ("engine.types", "from fastslow.engine.kv.cache import KVCache"),
        ("draft.ngram", "from fastslow.policies.modes import find_mode"),
        ("policies.modes", "from fastslow.draft.ngram import NgramDraft"),
        ("fastslow.llm", "from fastslow.tools.cli.app import main"),
        ("fastslow.llm", "def late():\n    from fastslow.tools.cli.app import main"),
    ],
)
def test_one_import_up_is_seen(module: str, line: str) -> None:
    assert arrows_up(graph(FILES | {module: f"{FILES[module]}\n{line}\n"}))


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("engine.kv.storage", "from fastslow.engine.kv.cache import KVCache"),
        ("engine.model.shape", "if TYPE_CHECKING:\n    from fastslow.engine.model import tensors"),
    ],
)
def test_one_circle_is_seen(module: str, line: str) -> None:
    assert circle(graph(FILES | {module: f"{FILES[module]}\n{line}\n"}))


def test_below_the_families_no_code_names_one() -> None:
    """Papers may be cited; all that a family is lies in fields of its shape."""
    name = re.compile(r"pangu|qwen|mistral|smollm|gpt.?oss|gemma|LlamaFor", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for folder in ("model", "checkpoint", "backends")
        for path in (ROOT / "engine" / folder).rglob("*")
        if path.suffix in (".py", ".h", ".cpp")
        for line in path.read_text("utf-8").splitlines()
        if name.search(line) and "arXiv" not in line
    ]
    assert found == []


def test_no_class_name_stands_for_two_things() -> None:
    where: dict[str, list[str]] = {}
    for module, text in FILES.items():
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                where.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in where.items() if len(modules) > 1} == {}


def test_every_package_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    folders = {
        "fastslow." + init.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for room in {place.partition(".")[0] for place in PLACES} - {"fastslow"}
        for init in (ROOT / room).rglob("__init__.py")
    }
    assert set(listed["packages"]) == {"fastslow", "fastslow.models", "fastslow.request", *folders}
    without = {m for m in FILES if "." in m and m.rpartition(".")[0] not in FILES}
    assert without == set()


def test_no_source_is_long() -> None:
    kernels = ROOT / "engine/backends/cpu/kernels"
    texts = FILES | {p.name: p.read_text("utf-8") for p in kernels.iterdir() if p.is_file()}
    assert {name: n for name, t in texts.items() if (n := t.count("\n")) > LIMIT} == {}


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
