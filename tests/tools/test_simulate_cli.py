"""`fastslow simulate` on the command line, from a trace to a page."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import checkpoints
import pytest

from fastslow.engine.host.machine import cores
from fastslow.tools.cli.app import main
from fastslow.tools.simulate import cluster
from fastslow.tools.simulate.costs import read_costs
from fastslow.tools.simulate.settings import ClusterSettings
from fastslow.tools.simulate.trace import read_trace, write_trace


def call(*words: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["simulate", *map(str, words)])
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a trace and planned costs."""
    monkeypatch.chdir(tmp_path)
    made = (
        "make",
        "-o",
        "t.jsonl",
        "--requests",
        150,
        "--rate",
        12,
        "--deep-tokens",
        100,
        "--latency-ms",
        200,
    )
    assert call(*made) == 0
    assert call("plan", "-o", "c.json") == 0
    return tmp_path


def test_from_a_trace_to_a_page(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = (
        "run",
        "t.jsonl",
        "--costs",
        "c.json",
        "--replicas",
        "2,3",
        "--router",
        "fastslow,prefix,pow2",
    )
    assert call(*asked, "-o", "f.json", "--picture", "p.html") == 0
    figures = json.loads(Path("f.json").read_text())
    cells = [(s["router"], s["replicas"]) for s in figures["simulations"]]
    assert cells == [(r, n) for n in (2, 3) for r in ("fastslow", "prefix", "pow2")]
    for one in figures["simulations"]:
        assert one["modes"]["all"]["requests"] == 150
        assert 0 < one["modes"]["fast"]["first"][0] <= one["modes"]["fast"]["first"][2]
    shown = capsys.readouterr().out
    assert "fastslow" in shown and "deep" in shown
    page = Path("p.html").read_text()
    assert page.count("<svg") == 6 and "power of two" in page
    assert call(*asked, "--picture", "p.svg") == 0
    drawn = Path("p.svg").read_text()
    assert drawn.lstrip().startswith("<svg xmlns=") and drawn.count("<svg") == 7


def test_a_recorded_trace_is_compared(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was simulated, taken for measured: the difference is none."""
    from dataclasses import replace

    costs, trace = read_costs(Path("c.json")), read_trace(Path("t.jsonl"))
    result = cluster.SimulatedCluster(trace, costs, ClusterSettings(2)).run()
    recorded = [
        replace(
            a.request,
            first_seconds=(a.first or 0) - a.request.arrival,
            end_seconds=end - a.request.arrival,
        )
        for a, end in zip(result.answers, result.ends)
    ]
    write_trace(Path("r.jsonl"), recorded)
    asked = ("run", "r.jsonl", "--costs", "c.json", "--compare", "r.jsonl", "-o", "f.json")
    assert call(*asked) == 0
    compared = json.loads(Path("f.json").read_text())["compared"]
    assert len(compared) == 12 and all(abs(one["off"]) < 1e-9 for one in compared)
    assert "measured" in capsys.readouterr().out


def test_scaling_deaths_and_settings_of_the_router(made: Path) -> None:
    assert call("plan", "-o", "c.json", "--start-seconds", 3) == 0
    asked = (
        "run",
        "t.jsonl",
        "--costs",
        "c.json",
        "--replicas",
        2,
        "--scale-to",
        4,
        "--mtbf-hours",
        0.004,
    )
    assert call(*asked, "--routing", "answer_steps=0.1,few=2", "-o", "f.json") == 0
    (one,) = json.loads(Path("f.json").read_text())["simulations"]
    assert one["deaths"] > 0 and one["modes"]["all"]["requests"] == 150


def test_a_log_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from test_simulate_files import logged

    monkeypatch.chdir(tmp_path)
    Path("serve.log").write_text(logged(1) + logged(2, tokens=0))
    assert call("record", "serve.log", "-o", "r.jsonl") == 0
    assert len(read_trace(Path("r.jsonl"))) == 1
    assert "1 lines without tokens left out" in capsys.readouterr().out


def test_steps_of_a_model_are_measured(tmp_path: Path) -> None:
    folder = checkpoints.write_moge(tmp_path / "model")
    out = tmp_path / "c.json"
    more = ("--kv-memory", "16MiB", "--max-running", 4, "--prompt-rows", 64, "--first-ms", 2)
    beside = ("--beside", 2, "--other-share", 9)
    assert call("measure", "--model", folder, "-o", out, *beside, *more) == 0
    costs = read_costs(out)
    assert len(costs.slowdown) == 2 and costs.slowdown[0] <= costs.slowdown[1]
    # one engine of one thread and what comes with it fill ten cores, two of them twenty
    assert costs.slowdown[0] >= max(1.0, 20 / cores()) / max(1.0, 2 / cores())
    assert not multiprocessing.active_children()
    assert set(costs.modes) == {"fast", "deep"} and costs.max_running == 4
    assert costs.first_seconds == 0.002 and costs.pages > 0
    for cost in costs.modes.values():
        assert (
            cost.rows[0] == 1 and cost.rows[-1] == 64 and len(cost.prompt_seconds) == len(cost.rows)
        )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "none.jsonl", "--costs", "c.json"), "none.jsonl cannot be read"),
        (("run", "t.jsonl", "--costs", "none.json"), "there is no such file"),
        (("run", "t.jsonl", "--costs", "c.json", "--router", "pow"), "router='pow' is unknown"),
        (("run", "t.jsonl", "--costs", "c.json", "--replicas", "0"), "'0' must be a whole number"),
        (("run", "t.jsonl", "--costs", "c.json", "--routing", "x=1"), "routing: 'x' is unknown"),
        (
            ("run", "t.jsonl", "--costs", "c.json", "--compare", "t.jsonl"),
            "nothing to compare with",
        ),
        (("run", "t.jsonl", "--costs", "c.json", "-o", "no/f.json"), "cannot be written"),
        (("make", "-o", "x.jsonl", "--deep", "2"), "deep=2.0 must be between 0 and 1"),
        (("plan", "-o", "x.json", "--cards", "1"), "does not fit into 1 x 800i-a2"),
    ],
)
def test_bad_input_is_one_sentence(
    words: tuple[str, ...], said: str, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert call(*words) == 2
    assert said in capsys.readouterr().err


def test_ctrl_c_shows_what_there_is(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, runs = cluster.SimulatedCluster.run, []

    def run(self: cluster.SimulatedCluster) -> cluster.ClusterResult:
        runs.append(self)
        if len(runs) == 2:
            raise KeyboardInterrupt
        return whole(self)

    monkeypatch.setattr(cluster.SimulatedCluster, "run", run)
    capsys.readouterr()
    asked = ("run", "t.jsonl", "--costs", "c.json", "--replicas", "2,3", "-o", "f.json")
    assert call(*asked) == 130
    assert json.loads(Path("f.json").read_text())["stopped"] is True
    assert "deep" in capsys.readouterr().out
