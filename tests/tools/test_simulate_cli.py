"""`fastslow simulate` on the command line: from a trace to figures, and one sentence for wrong input."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import checkpoints
import pytest
from cli_tools import printed, refusal
from rich.console import Console
from test_simulate_files import LINE

from fastslow.tools.cli import screen
from fastslow.tools.cli.simulate import latency_table
from fastslow.tools.simulate.costs import read_costs
from fastslow.tools.simulate.figures import ModeFigures

COSTS = {"modes": {m: {"rows": [1, 64], "seconds": [0.01, 0.02]} for m in ("fast", "deep")}}
RUN = "run", "t.jsonl", "--costs", "c.json"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a trace and costs."""
    monkeypatch.chdir(tmp_path)
    made = ("--requests", 60, "--rate", 12, "--deep-tokens", 50, "--latency-ms", 200)
    printed("simulate", "make", "-o", "t.jsonl", *made)
    Path("c.json").write_text(json.dumps(COSTS | {"pages": 10_000}))
    return tmp_path


def test_from_a_trace_to_figures_planned_or_measured(made: Path) -> None:
    shown = printed("simulate", *RUN, "--replicas", "2,3", "-o", "f.json")
    figures = json.loads(Path("f.json").read_text())
    assert [one["replicas"] for one in figures["simulations"]] == [2, 3]
    for one in figures["simulations"]:
        assert one["modes"]["all"]["requests"] == 60
        assert 0 < one["modes"]["fast"]["first"][0] <= one["modes"]["fast"]["first"][2]
    assert "replica-" in shown and "deep" in shown
    printed("plan", "--cards", 4, "--costs", "p.json")
    planned = read_costs(Path("p.json"))
    assert "openpangu-pro-moe-72b, w8a8" in planned.source and "4 x 800i-a2" in planned.source
    printed("simulate", "run", "t.jsonl", "--costs", "p.json")
    Path("t.jsonl").write_text(json.dumps(LINE | {"first_seconds": 0.125, "end_seconds": 0.5}))
    shown = printed("simulate", *RUN, "-o", "f.json")
    measured = json.loads(Path("f.json").read_text())["measured"]
    assert measured["fast"]["first"] == pytest.approx([0.125] * 3)
    assert measured["fast"]["each"] == pytest.approx([0.375 / 4] * 3)
    assert "measured all 0.125" in " ".join(shown.split())


@pytest.mark.slow
def test_steps_of_a_model_are_measured(tmp_path: Path) -> None:
    folder = checkpoints.write_moge(tmp_path / "model")
    out = tmp_path / "c.json"
    more = ("--kv-memory", "16MiB", "--max-running", 4, "--prompt-rows", 64, "--first-ms", 2)
    printed("simulate", "measure", "--model", folder, "-o", out, *more)
    costs = read_costs(out)
    assert set(costs.modes) == {"fast", "deep"} and costs.max_running == 4
    assert costs.first_seconds == 0.002 and costs.pages > 0
    for cost in costs.modes.values():
        assert cost.rows[0] == 1 and cost.rows[-1] == 64 and len(cost.prompt_seconds) == len(cost.rows)


@pytest.mark.parametrize(("words", "line", "said"), [
    (("run", "t.jsonl", "--costs", "none.json"), {}, "there is no such file"),
    ((*RUN, "--replicas", 10**18), {}, f"replicas={10**18} must be between 1 and 10000"),
    (RUN, {"mode": "quick"}, "mode 'quick' has no step costs"),
    (RUN, {"answer_tokens": 10**7}, "pages of 16 tokens, and a replica has 10000"),
    (("make", "-o", "x.jsonl", "--deep", "2"), {}, "deep=2.0 must be less than or equal to 1"),
    (("measure", "-o", "x.json", "--model", "no-such-model"), {}, "no-such-model"),
])  # fmt: skip
def test_bad_input_is_one_sentence(words: tuple[object, ...], line: dict[str, Any], said: str, made: Path) -> None:
    Path("t.jsonl").write_text(f"{json.dumps(LINE)}\n{json.dumps(LINE | line)}\n")
    assert said in refusal("simulate", *words) and not list(Path().glob("x.*"))


USUAL = ModeFigures(9, (0.0881, 0.2364, 0.3127), (0.0211, 0.0305, 0.1), 0.85, 0.99)
HUGE = ModeFigures(9, (99.94, 123456.7, 2e8), (9.9994, 300.0, 4e6), 1.0, 1.0)
ONE_TOKEN = ModeFigures(9, (1.0, 10.0, 100.0), (), 0.0, None)


def test_in_80_columns_each_row_is_one_line_of_whole_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    out = StringIO()
    narrow = Console(file=out, width=80, highlight=False, soft_wrap=True)
    monkeypatch.setattr(screen, "console", lambda: narrow)
    monkeypatch.setenv("COLUMNS", "80")
    screen.show(latency_table({"10000": {"all": USUAL, "fast": HUGE}, "2": {"all": ONE_TOKEN}}))
    shown = out.getvalue().splitlines()
    assert max(map(len, shown)) <= 80
    assert {" ".join(line.split()) for line in shown} >= {
        "10000 all 0.088 0.236 0.313 21.1 30.5 100 99%",
        "fast 99.9 123457 2e+08 9999 300000 4e+09 100%",
        "2 all 1.000 10.0 100 - - - -",
    }
