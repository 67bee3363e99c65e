"""The house: rooms whose arrows go down only, no circles, files of a readable size, the public names."""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import fastslow
from fastslow.engine.core.engine_core import EngineCore

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
ROOMS = sorted({place.partition(".")[0] for place in PLACES})


@cache
def files() -> dict[str, str]:
    """Every module of ours by name, without the leading "fastslow." of the rooms, with its text."""
    found = {}
    for path in [p for room in ROOMS for p in (ROOT / room).rglob("*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] == "fastslow" and len(parts) > 2 and parts[1] in ROOMS:
            continue  # the links by which the rooms are installed
        found[".".join(parts).removesuffix(".__init__")] = path.read_text("utf-8")
    return found


def place_of(module: str) -> str:
    """The place of PLACES that a module lies in."""
    parts = module.split(".")
    inner = ".".join(parts[:2])
    return inner if inner in PLACES else parts[0]


@cache
def nodes(source: str) -> tuple[ast.AST, ...]:
    """The statements of a source that others look at: its imports wherever they are, its own classes."""
    tree = ast.parse(source)
    own = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return (*own, *(n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)))


def imports(source: str) -> set[str]:
    """Modules of ours that a source imports, wherever in it and for whatever."""
    names: set[str] = set()
    for node in nodes(source):
        match node:
            case ast.Import(names=aliases):
                names |= {_room(alias.name) for alias in aliases}
            case ast.ImportFrom(module=str(module), level=0, names=aliases):
                # `from package import module` imports package.module
                inner = [_room(f"{module}.{alias.name}") for alias in aliases]
                names |= {name if name in files() else _room(module) for name in inner}
            case ast.ImportFrom():
                raise ValueError("a relative import")
    return names & files().keys()


def _room(name: str) -> str:
    """A module as `files` calls it; one that is not ours as no file is called."""
    inner = name.removeprefix("fastslow.")
    if inner == name != "fastslow":
        return ""
    return inner if inner.split(".")[0] in ROOMS else name


@cache
def arrows() -> dict[str, set[str]]:
    return {name: imports(text) - {name} for name, text in files().items()}


def upward(arrows: dict[str, set[str]]) -> list[tuple[str, str]]:
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


def folders(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same between the folders of the rooms, and the files beside these. Without a circle they lie on floors, and
    no arrow goes up."""
    found: dict[str, set[str]] = {}
    for a, others in arrows.items():
        home, *there = [".".join(name.split(".")[:2]) for name in (a, *others)]
        found.setdefault(home, set()).update({*there} - {home})
    return found


def circle_of_folders(arrows: dict[str, set[str]]) -> list[str]:
    return circle(folders(arrows))


def test_arrows_go_down() -> None:
    assert upward(arrows()) == []


def test_no_files_import_each_other() -> None:
    assert circle(arrows()) == []
    assert circle_of_folders(arrows()) == []


@pytest.mark.parametrize(("module", "line", "seen"), [
    ("engine.core.engine_core", "from fastslow.draft import ngram", upward),
    ("engine.core.engine_core", "from fastslow import LLM", upward),
    ("engine.kv.cache", "import fastslow.policies.modes", upward),
    ("engine.types", "from fastslow.engine.kv.cache import KVCache", upward),
    ("draft.ngram", "from fastslow.policies.modes import find_mode", upward),
    ("fastslow.llm", "def late():\n    from fastslow.tools.cli.app import main", upward),
    ("serve.http.route", "from fastslow.serve import app", circle_of_folders),
    ("serve.api.config", "from fastslow.serve.engines import settings", circle_of_folders),
    ("fastslow.tool_calls.lark", "import fastslow.request.options", circle_of_folders),
    ("engine.model.shape", "if True:\n    from fastslow.engine.model import tensors", circle),
])  # fmt: skip
def test_one_wrong_import_is_seen(module: str, line: str, seen: Callable[[dict[str, set[str]]], object]) -> None:
    assert seen(arrows() | {module: imports(f"{files()[module]}\n{line}\n")})


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


def test_no_class_name_stands_twice_and_every_package_is_listed() -> None:
    where: dict[str, list[str]] = {}
    for module, text in files().items():
        for node in nodes(text):
            if isinstance(node, ast.ClassDef):
                where.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in where.items() if len(modules) > 1} == {}
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    folders = {
        "fastslow." + init.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for room in set(ROOMS) - {"fastslow"}
        for init in (ROOT / room).rglob("__init__.py")
    }
    assert set(listed["packages"]) == {
        "fastslow", "fastslow.models", "fastslow.models.hub", "fastslow.request", "fastslow.tool_calls", *folders,
    }  # fmt: skip
    assert {m for m in files() if "." in m and m.rpartition(".")[0] not in files()} == set()


def test_no_source_is_long_or_imported_from_the_working_folder_and_the_core_stays_small() -> None:
    """`-c` and `-m` put it first, where any file may be called as a module of ours. What starts processes otherwise
    says it in its own way."""
    started = re.compile(r"\[\s*sys\.executable,\s*([^,\]]+)|get_context\(\"spawn\"\)\n(.*)")
    found = {name: [a or b for a, b in started.findall(text)] for name, text in files().items()}
    found = {name: each for name, each in found.items() if each}
    assert len(found) == 4
    safe = ('"-I"', '"-P"', "PYTHONSAFEPATH")
    assert all(any(way in one for way in safe) for each in found.values() for one in each), found
    kernels = ROOT / "engine/backends/cpu/kernels"
    texts = files() | {p.name: p.read_text("utf-8") for p in kernels.iterdir() if p.is_file()}
    assert {name: n for name, t in texts.items() if (n := t.count("\n")) > LIMIT} == {}
    kinds = {n.name: n for t in files().values() for n in nodes(t) if isinstance(n, ast.ClassDef)}
    methods = [n for n in kinds["KVCache"].body if isinstance(n, ast.FunctionDef)]
    assert 10 < len(methods) <= 20
    source = inspect.getsource(EngineCore.step)
    assert 10 < source.count("\n") <= 45
    fields = [n for n in kinds["Request"].body if isinstance(n, ast.AnnAssign)]
    assert 10 < len(fields) <= 30


def test_import_is_light_and_every_public_name_is_there() -> None:
    code = (
        "import sys, fastslow\n"
        "fastslow.SamplingParams, fastslow.Speculation, fastslow.Mode, fastslow.__version__\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert set(fastslow.__all__) <= set(dir(fastslow))
    for name in fastslow.__all__:
        assert getattr(fastslow, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'LLMs'"):
        fastslow.LLMs  # noqa: B018


def test_ci_runs_the_readmes_own_test_command() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert 'pip install . && fastslow generate "Why is the sky blue?"' in lines
    commands = [line for line in lines if line.endswith("python -m pytest")]
    assert len(commands) == 1 and commands[0] in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
