"""The trace in docs/architecture.md is what a call of `generate()` really does."""

from __future__ import annotations

import ast
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest

from fastslow import LLM, SamplingParams
from fastslow.engine.backends.cpu import library

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/architecture.md"
ROW = re.compile(r"^\| (\d+) \| `([\w/.]+):(\d+)` \| `([\w.]+)` \|", re.MULTILINE)
MOST_HOPS, MOST_WORDS = 12, 1600


class Hop(NamedTuple):
    number: int
    file: str
    line: int
    function: str


def hops() -> list[Hop]:
    rows = ROW.findall(PAGE.read_text("utf-8"))
    return [Hop(int(number), file, int(line), name) for number, file, line, name in rows]


def definitions(file: str) -> Iterator[tuple[str, int]]:
    """Functions and methods of a file with their lines."""
    for node in ast.parse((ROOT / file).read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    yield f"{node.name}.{inner.name}", inner.lineno


def test_the_page_is_short() -> None:
    words = re.sub(r"```.*?```", "", PAGE.read_text("utf-8"), flags=re.DOTALL).split()
    assert len(words) <= MOST_WORDS
    assert [hop.number for hop in hops()] == list(range(1, len(hops()) + 1))
    assert 5 <= len(hops()) <= MOST_HOPS


@pytest.mark.parametrize("hop", hops(), ids=lambda hop: hop.function)
def test_each_hop_is_where_the_page_says(hop: Hop) -> None:
    lines = dict(definitions(hop.file))  # the last of overloads is the function itself
    assert lines.get(hop.function) == hop.line, f"{hop.file}:{lines.get(hop.function)}"


@pytest.mark.skipif(not library.available(), reason="hop 9 is the kernels' decoder")
def test_a_call_takes_these_hops_in_this_order() -> None:
    called: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and ROOT in path.parents:
            where = path.relative_to(ROOT).as_posix()
            where = re.sub(r"^fastslow/(?=(engine|draft|policies|tools)/)", "", where)
            called.append((where, frame.f_code.co_qualname))

    threading.setprofile(note)  # for the engine's thread, which begins with the model
    try:
        with LLM("abacus", progress=False) as llm:
            llm.generate("1 + 1 =", SamplingParams(max_tokens=1))
            called.clear()
            sys.setprofile(note)
            llm.generate("What is 327 + 486?", SamplingParams(max_tokens=8))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    first = [called.index((hop.file, hop.function)) for hop in hops()]
    assert first == sorted(first), [
        hops()[i].function for i in sorted(range(len(first)), key=first.__getitem__)
    ]
