"""The progress of a job: bars on terminals and in notebooks, elsewhere lines of the log."""

import sys
import threading
import time
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import pytest

from fastslow.engine.host import progress


def wait_for(text: str, lines: list[Any], count: int = 1) -> None:
    end = time.monotonic() + 30
    while sum(text in str(line) for line in [*lines]) < count:
        assert time.monotonic() < end, f"{text!r} did not come: {lines}"
        time.sleep(0.005)


def test_outside_a_terminal_a_line_comes_while_nothing_is_reported(
    monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.01)
    with progress.progress_bar() as report:
        wait_for("getting ready, after 0 s", logged)
        report(0.25, "layer 2 of 8")
        wait_for("25%, layer 2 of 8, after", logged, 3)
    with pytest.raises(KeyError), progress.progress_bar():
        raise KeyError
    assert not [one for one in threading.enumerate() if "progress" in one.name], "it has ended"


def test_items_are_counted(monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.01)
    for given, total, text in (
        ([7, 8, 9], None, "Reading: 1 of 3, after"),
        (iter([7, 8, 9]), 5, "Reading: 1 of 5, after"),
        (iter([7, 8, 9]), None, "Reading: 1, after"),
    ):
        seen = []
        for item in progress.bar(given, "Reading", total):
            if item == 8:
                wait_for(text, logged)
            seen.append(item)
        assert seen == [7, 8, 9]


def test_a_short_job_says_nothing(logged: list[str]) -> None:
    with progress.progress_bar() as report:
        report(0.5, "half")
    assert list(progress.bar([1, 2], "Reading")) == [1, 2] and not logged and progress.EVERY == 10.0


def test_a_notebook_has_a_bar(monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> None:
    shown: list[Any] = []

    class Output(nullcontext[None]):
        """A stand-in for the `Output` of ipywidgets: it shows what is printed inside of it."""

        def clear_output(self, wait: bool) -> None:
            pass

        def close(self) -> None:
            shown.append("closed")

    modules = {"IPython": {}, "IPython.display": {"display": shown.append}}
    for name, holds in (modules | {"ipywidgets": {"Output": Output}}).items():
        module = ModuleType(name)
        module.__dict__.update(holds)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda segments, text: shown.append(text))
    with progress.progress_bar() as report:
        report(0.5, "half of it")
        wait_for("half of it", shown)
    for _ in progress.bar([1, 2], "Reading"):
        wait_for("Reading", shown)
    assert sum(isinstance(one, Output) for one in shown) == 2 == shown.count("closed")
    assert not logged, "no lines beside it"
