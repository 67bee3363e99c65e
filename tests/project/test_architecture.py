"""The ways in docs/architecture.md are those that a call of `generate()` and a streamed chat really take."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest

from fastslow import LLM, SamplingParams
from fastslow.engine.backends.cpu import library

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/architecture.md"
ROW = re.compile(r"^\| (\d+) \| `([\w/.]+)` \| `([\w.]+)` \|", re.MULTILINE)
ROOMS = re.compile(r"^fastslow/(?=(engine|draft|policies|serve|tools)/)")
MOST_WORDS = 1600
CALL, MOST_CALL_HOPS = "## One call", 11


class Hop(NamedTuple):
    number: int
    file: str
    function: str


class Called(NamedTuple):
    """A call of a function of ours, by another function of ours or none."""

    file: str
    function: str
    caller: str  # the file that calls, "" where it is not ours


def hops(section: str) -> list[Hop]:
    """The way that a section of the page shows."""
    text = PAGE.read_text("utf-8").partition(f"{section}\n")[2].partition("\n## ")[0]
    return [Hop(int(number), file, name) for number, file, name in ROW.findall(text)]


def ours(frame: FrameType | None) -> str:
    path = Path(frame.f_code.co_filename) if frame is not None else Path()
    if ROOT not in path.parents:
        return ""
    return ROOMS.sub("", path.relative_to(ROOT).as_posix())


@contextmanager
def traced(threads: Any = None) -> Iterator[list[Called]]:
    """Every call of ours, in all threads that begin inside, and in this one."""
    called: list[Called] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and (file := ours(frame)):
            called.append(Called(file, frame.f_code.co_qualname, ours(frame.f_back)))

    threading.setprofile(note)  # for the engine's thread, which begins with the model
    sys.setprofile(note)
    try:
        yield called
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def check_order(way: list[Hop], called: list[Called]) -> None:
    places = [(one.file, one.function) for one in called]
    missing = [hop for hop in way if (hop.file, hop.function) not in places]
    assert not missing
    first = [places.index((hop.file, hop.function)) for hop in way]
    assert first == sorted(first), [
        way[n].function for n in sorted(range(len(first)), key=first.__getitem__)
    ]


def test_the_page_is_short() -> None:
    words = re.sub(r"```.*?```", "", PAGE.read_text("utf-8"), flags=re.DOTALL).split()
    assert len(words) <= MOST_WORDS


@pytest.mark.parametrize(("section", "most"), [(CALL, MOST_CALL_HOPS)])
def test_each_way_is_short(section: str, most: int) -> None:
    way = hops(section)
    assert [hop.number for hop in way] == list(range(1, len(way) + 1))
    assert 5 <= len(way) <= most
    for hop in way:
        assert hop.function.rpartition(".")[2] in (ROOT / hop.file).read_text("utf-8")


@pytest.fixture(scope="module")
def generated() -> list[Called]:
    """What a call of `generate()` calls."""
    with traced() as called, LLM("abacus", progress=False) as llm:
        llm.generate("1 + 1 =", SamplingParams(max_tokens=1))
        called.clear()
        llm.generate("What is 327 + 486?", SamplingParams(max_tokens=8))
    return called


@pytest.mark.skipif(not library.available(), reason="one hop is the kernels' decoder")
def test_a_call_takes_these_hops_in_this_order(generated: list[Called]) -> None:
    check_order(hops(CALL), generated)


def test_building_a_request_goes_one_way(generated: list[Called]) -> None:
    """Until the engine has the requests, no file calls into a file that it is imported by."""
    submitted = [one.function for one in generated].index("Worker.submit")
    imported = {
        path.relative_to(ROOT).as_posix(): set(
            re.findall(r"^from fastslow\.([\w.]+) import", path.read_text("utf-8"), re.MULTILINE)
        )
        for path in (ROOT / "fastslow/request").glob("*.py")
    }
    names = {
        file: file.removeprefix("fastslow/").removesuffix(".py").replace("/", ".")
        for file in imported
    }
    inner = [one for one in generated[:submitted] if one.file in names and one.caller in names]
    steps = {(one.caller, one.file) for one in inner if one.caller != one.file}
    assert ("fastslow/request/group.py", "fastslow/request/builder.py") in steps
    climbs = [(a, b) for a, b in steps if names[a] in imported[b]]
    assert not climbs
