"""Every call of torch_npu against the schemas of torch-npu itself, without torch-npu and without an NPU."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch
from npu_kernels import SCHEMAS

ROOT = Path(__file__).parents[3]
FILES = ("engine/backends/accelerator/npu.py", "engine/backends/accelerator/npu_310p.py")
OURS = {  # of `torch_npu.npu`, which has no schemas: name -> keywords
    "NPUGraph": set[str](),
    "graph": {"pool", "stream", "auto_dispatch_capture", "capture_error_mode"},
    "graph_pool_handle": set[str](),
    "current_stream": set[str](),
    "current_stream().synchronize": set[str](),
    "current_stream().record_event": set[str](),
    "set_stream": set[str](),
    "device": set[str](),
    "Stream": set[str](),
    "Event": set[str](),
    "get_device_name": set[str](),
}


def operators() -> dict[str, torch._C.FunctionSchema]:
    parsed = [torch._C.parse_schema(schema) for schema in SCHEMAS]
    return {schema.name.partition("::")[2]: schema for schema in parsed}


def faults(source: str) -> list[str]:
    """What would not bind, call by call; and what could not be checked."""
    tree = ast.parse(source)
    known, found = operators(), list[str]()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name.startswith("torch.ops."):
            found.append(f"line {node.lineno}: {name} must be called by torch_npu's name")
        if not name.startswith("torch_npu."):
            continue
        name = name.removeprefix("torch_npu.")
        if name.startswith("npu."):
            keywords = OURS.get(name.removeprefix("npu."))
            wrong = {k.arg for k in node.keywords} - (keywords or set())
            if keywords is None or wrong:
                found.append(f"line {node.lineno}: {name} {sorted(map(str, wrong))}")
        elif name not in known:
            found.append(f"line {node.lineno}: there is no operator {name}")
        else:
            found += [f"line {node.lineno}: {name}: {e}" for e in _unbound(node, known[name])]
    return found


def _unbound(call: ast.Call, schema: torch._C.FunctionSchema) -> list[str]:
    arguments = {a.name: a for a in schema.arguments}
    places = [a.name for a in schema.arguments if not a.kwarg_only]
    if any(isinstance(a, ast.Starred) for a in call.args) or any(
        k.arg is None for k in call.keywords
    ):
        return ["arguments must be written out"]
    named = [str(k.arg) for k in call.keywords]
    given = [*places[: len(call.args)], *named]
    wrong = [f"no argument {name}" for name in named if name not in arguments]
    if len(call.args) > len(places):
        wrong.append(f"{len(call.args)} arguments by place, at most {len(places)}")
    wrong += [f"{name} is given twice" for name in set(given) if given.count(name) > 1]
    missing = [a for a in arguments.values() if not a.has_default_value() and a.name not in given]
    return wrong + [f"argument {a.name} is missing" for a in missing]


@pytest.mark.parametrize("file", FILES)
def test_every_call_binds(file: str) -> None:
    source = (ROOT / file).read_text("utf-8")
    assert faults(source) == []
    assert source.count("torch_npu.npu_") + source.count("torch_npu._npu_") > 3


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("epsilon=eps)[0]", "eps=eps)[0]"),
        ("torch_npu.npu_swiglu", "torch_npu.npu_silu_and_mul"),
        ("            x_TH,\n            experts_TG,\n", "            x_TH,\n"),
        ("auto_dispatch_capture=self", "auto_capture=self"),
    ],
    ids=range(4),
)
def test_a_wrong_call_is_seen(right: str, wrong: str) -> None:
    source = (ROOT / FILES[0]).read_text("utf-8")
    assert right in source
    assert faults(source.replace(right, wrong, 1))


def test_calls_are_in_these_files_only() -> None:
    files = [p for room in ("engine", "draft", "policies") for p in (ROOT / room).rglob("*.py")]
    others = {
        p.relative_to(ROOT).as_posix()
        for p in files
        if any(w in p.read_text("utf-8") for w in ("torch_npu.", "ops.npu.", "from torch_npu"))
    }
    assert others - set(FILES) == {"engine/backends/device.py"}


def test_the_schemas_are_those_that_are_used() -> None:
    text = "".join((ROOT / file).read_text("utf-8") for file in FILES)
    data = json.loads((ROOT / "tests/support/data/npu_schemas.json").read_text("utf-8"))
    assert data["torch_npu"] == "2.13.0"
    assert {name for name in operators() if f"torch_npu.{name}(" not in text} == set()
