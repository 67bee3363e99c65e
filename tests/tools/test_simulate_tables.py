"""The tables of `fastslow simulate run`: in 80 columns each row is one line, with every figure whole."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console
from rich.table import Table

from fastslow.tools.cli import screen
from fastslow.tools.cli.simulate_tables import cluster_table, compared_table, latency_table
from fastslow.tools.simulate.comparison import ComparedFigure
from fastslow.tools.simulate.figures import ClusterFigures, ModeFigures


def of(mode: ModeFigures, replicas: int = 2, most: int = 2, hours: float = 0.5) -> ClusterFigures:
    return ClusterFigures(
        router="fastslow",
        replicas=replicas,
        modes={"all": mode, "fast": mode, "deep": mode},
        possible_hit_rate=0.91,
        replica_hours=hours,
        busy=0.5,
        tokens_per_second=100.0,
        seconds=100.0,
        most_replicas=most,
        deaths=0,
        continued=0,
        preempted=0,
    )


USUAL = ModeFigures(9, (0.0881, 0.2364, 0.3127), (0.0211, 0.0305, 0.1), 0.85, 0.99)
LARGEST = ModeFigures(9, (99.94, 123456.7, 999999.4), (9.9994, 99.94, 999.9994), 1.0, 1.0)
HUGE = ModeFigures(9, (2e6, 2e7, 2e8), (2e4, 3e5, 4e6), 1.0, 1.0)
UNKNOWN = ModeFigures(9, (1.0, 10.0, 100.0), (), None, None)


def lines(table: Table, monkeypatch: pytest.MonkeyPatch, width: int = 80) -> list[list[str]]:
    """The words of each line that people see."""
    out = StringIO()
    narrow = Console(file=out, width=width, highlight=False, soft_wrap=True)
    monkeypatch.setattr(screen, "console", lambda: narrow)
    screen.show(table)
    shown = out.getvalue().splitlines()
    assert max(map(len, shown)) <= width
    return [line.split() for line in shown]


@pytest.mark.parametrize(
    ("figures", "cells"),
    [
        (USUAL, ["0.088", "0.236", "0.313", "21.1", "30.5", "100", "99%"]),
        (LARGEST, ["99.9", "123457", "999999", "9999", "99940", "999999", "100%"]),
        (HUGE, ["2e+06", "2e+07", "2e+08", "2e+07", "3e+08", "4e+09", "100%"]),
        (UNKNOWN, ["1.000", "10.0", "100", "-", "-", "-", "-"]),
    ],
)
def test_every_mode_is_one_line_of_whole_figures(
    figures: ModeFigures, cells: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = lines(latency_table([of(figures), of(figures, 10_000)]), monkeypatch)
    for row in (
        ["fastslow", "2", "all", *cells],
        ["fastslow", "10000", "all", *cells],
        ["fast", *cells],
        ["deep", *cells],
    ):
        assert row in shown
    titles = ["router", "replicas", "mode", "p50", "s", "p95", "s", "p99", "s"]
    assert [*titles, "p50", "ms", "p95", "ms", "p99", "ms", "time"] in shown


def test_a_long_name_of_a_mode_wraps_and_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    one = of(USUAL)
    one.modes["a-mode-of-my-own"] = USUAL
    shown = lines(latency_table([one]), monkeypatch)
    cells = ["0.088", "0.236", "0.313", "21.1", "30.5", "100", "99%"]
    assert [line[0] for line in shown if line[1:] == cells][-1] in "a-mode-of-my-own"
    name = "".join(line[0] for line in shown if line and line[0] in "a-mode-of-my-own")
    assert name == "a-mode-of-my-own"


def test_each_simulation_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    every = [of(USUAL), of(UNKNOWN, 1, 10_000, hours=123456.7)]
    shown = lines(cluster_table(every), monkeypatch)
    assert ["fastslow", "2", "50%", "85%", "91%", "0.500", "50.0"] in shown
    assert ["fastslow", "1", "to", "10000", "50%", "-", "91%", "123457", "1e+07"] in shown


def test_each_comparison_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    one = ComparedFigure("fast", "each later one", 95, 0.0305, 0.0366)
    shown = lines(compared_table([one]), monkeypatch)
    assert ["fast", "each", "later", "one", "p95", "30.5", "36.6", "+20%"] in shown
