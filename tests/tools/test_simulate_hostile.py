"""Hostile input to `fastslow simulate`: one sentence and exit code 2, soon, and no file is left half made."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from test_simulate_cli import call
from test_simulate_files import LINE, logged

COSTS = {"modes": {"fast": {"rows": [1, 64], "seconds": [0.1, 0.2]}}, "pages": 10_000}
HUGE = int(1e18)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a good trace and good costs."""
    monkeypatch.chdir(tmp_path)
    Path("c.json").write_text(json.dumps(COSTS))
    Path("t.jsonl").write_text("".join(json.dumps(LINE | {"arrival": n}) + "\n" for n in range(5)))
    return tmp_path


def refused(said: str, capsys: pytest.CaptureFixture[str], *words: object) -> None:
    capsys.readouterr()
    assert call(*words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and "Traceback" not in error


RUN = "run", "t.jsonl", "--costs", "c.json"


def test_the_good_one_runs(folder: Path) -> None:
    assert call(*RUN) == 0


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", "t.jsonl has no request"),
        ("nonsense", "t.jsonl, line 1: no JSON"),
        ("[" * 100_000, "t.jsonl, line 1: no JSON"),
        ("\xff\xfe", "t.jsonl, line 1: no JSON"),
        ({"arrival": -1}, "arrival=-1 must be a number between 0 and 1e+09"),
        ({"arrival": 1e308}, "arrival=1e+308 must be a number"),
        ({"arrival": float("nan")}, "arrival=nan must be a number"),
        ({"arrival": float("inf")}, "arrival=inf must be a number"),
        ({"answer_tokens": HUGE}, "must be a whole number between 1 and 10000000"),
        ({"answer_tokens": 10_000_000}, "pages of 16 tokens, and a replica has 10000"),
        ({"mode": "deep"}, "mode 'deep' has no step costs"),
        ({"mode": "all"}, "line 1: mode='all' is what the figures of all modes are called"),
        ({"prefix": [["a", float("nan")]]}, "prefix: tokens=nan must be a whole number"),
        ({"prefix": {"a": 1}}, "prefix must be a list"),
    ],
)
def test_traces(
    lines: str | dict[str, Any], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = lines if isinstance(lines, str) else json.dumps(LINE | lines) + "\n"
    Path("t.jsonl").write_bytes(text.encode("latin-1"))
    refused(said, capsys, *RUN)


def test_a_line_without_end(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not read to its end, which may fill the memory."""
    monkeypatch.setattr("fastslow.tools.simulate.trace.MOST_BYTES", 500)
    Path("t.jsonl").write_text(json.dumps(LINE) + "\n" + " " * 501)
    refused("t.jsonl, line 2: longer than 500 bytes", capsys, *RUN)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("{", "is not valid JSON"),
        ("[]", "must hold a JSON object"),
        ({"pages": 1e308}, "pages=1e+308 must be a whole number"),
        ({"context_seconds": 1e308}, "context_seconds=1e+308 must be between 0 and 1"),
        ({"first_seconds": 1e308}, "first_seconds=1e+308 must be between 0 and 1e+06"),
        ({"start_seconds": float("nan")}, "start_seconds=nan must be between 0 and 1e+06"),
        ({"slowdown": [1e308]}, "slowdown must be at most 64 numbers between 1 and 1e+06"),
        ({"modes": {"fast": {"rows": [1], "seconds": [1e308]}}}, "and at most 3600"),
        ({"modes": {"fast": {"rows": [1, float("nan")], "seconds": [1, 2]}}}, "rows must be"),
        ({"modes": {"fast": {"rows": [1, 1e308], "seconds": [1, 2]}}}, "rows must be"),
        ({"modes": {"fast": {"rows": 1, "seconds": [1]}}}, "rows must be a list of numbers"),
        ({"modes": {"fast": 7}}, "mode 'fast': 7 must be an object"),
    ],
)
def test_costs(
    change: str | dict[str, Any], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = change if isinstance(change, str) else json.dumps(COSTS | change)
    Path("c.json").write_text(text)
    refused(said, capsys, *RUN)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--machine-replicas", 2), "machine_replicas=2 needs costs with a slowdown"),
        (("--machine-replicas", 65), "machine_replicas=65 must be between 1 and 64"),
        (("--replicas", HUGE), f"replicas={HUGE} must be between 1 and 10000"),
        (("--replicas", "2,,x"), "'x' must be a whole number"),
        (("--scale-to", HUGE), f"scale_to={HUGE} must be at most 10000"),
        (("--scale-to", 2, "--scale-from", 3), "scale_from=3 must be at most scale_to=2"),
        (("--scale-from", 3), "scale_from=3 is for scale_to"),
        (("--mtbf-hours", "nan"), "mtbf_hours=nan must be above 0"),
        (("--mtbf-hours", "-1"), "mtbf_hours=-1.0 must be above 0"),
        (("--seconds", 5), "seconds=5 is for rate_each: give that, too"),
        (("--rate-each", "1e308"), "are more than 2,000,000"),
        (("--rate-each", "0.000001"), "1e-06 requests a second leave none of this trace"),
        (("--routing", "few=1e308"), "few='1e308' must be a number"),
        (("--routing", "reserved_share=nan"), "reserved_share=nan must be between 0 and 1e+09"),
        (("--routing", "block_growth=nan"), "block_growth=nan must be between 0 and 1e+09"),
        (("--routing", "full_steps=1e308"), "full_steps=1e+308 must be between 0 and 1e+09"),
        (("--routing", "attempts=-5"), "attempts=-5 must be between 0 and 1e+09"),
        (
            ("--routing", "reserved_seconds=-2"),
            "reserved_seconds=-2.0 must be between -1 and 1e+09",
        ),
        (("--routing", "few=0"), "few=0 must be 1 or more"),
        (("--picture", "p.png"), "picture='p.png' must end with .html or .svg"),
        (("--picture", "none/p.svg"), "cannot be written"),
        (("-o", "."), "cannot be written"),
        (("--compare", "c.json"), "c.json, line 1: field 'modes' is unknown"),
    ],
)
def test_options_of_run(
    words: tuple[object, ...], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replicas = () if "--replicas" in words else ("--replicas", 1)
    refused(said, capsys, *RUN, *replicas, *words)


def test_one_answer_that_lasts_for_ever(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reports come each second of the simulated time."""
    slow = {"modes": {"fast": {"rows": [1], "seconds": [3600]}}, "pages": 10**9}
    Path("c.json").write_text(json.dumps(slow))
    Path("t.jsonl").write_text(json.dumps(LINE | {"answer_tokens": 10_000_000}))
    refused("2 replicas make 7.2e+10 reports in the 3.6e+10 s", capsys, *RUN)
    Path("t.jsonl").write_text(json.dumps(LINE | {"prompt_tokens": 10_000_000}))
    Path("c.json").write_text(json.dumps(slow | {"prompt_rows": 1, "max_running": 1}))
    refused("more than 1e+08", capsys, *RUN)


def test_a_recorded_trace_of_other_modes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = LINE | {"mode": "deep", "id": "#1", "first_seconds": 1.0}
    Path("r.jsonl").write_text(json.dumps(other))
    refused(
        "requests of mode 'deep' have another one in the trace",
        capsys,
        *RUN,
        "--compare",
        "r.jsonl",
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--requests", 0), "requests=0 must be between 1 and"),
        (("--requests", HUGE), "must be between 1 and 2e+06"),
        (("--rate", "nan"), "rate=nan must be between"),
        (("--rate", "1e308"), "rate=1e+308 must be between"),
        (("--rate", "1e-6"), "rate=1e-06 must be at least 2e-05: 2000 requests"),
        (("--rate", 1000, "--think-seconds", "1e6"), "think_seconds=1e+06 must be at most"),
        (("--latency-ms", "nan"), "latency_ms=nan must be between"),
        (("--latency-ms", "-5"), "latency_ms=-5.0 must be between"),
        (("--turns", "1e308"), "turns=1e+308 must be between"),
        (("--burst", "1"), "burst=1.0 must be between"),
    ],
)
def test_options_of_make(
    words: tuple[object, ...], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(said, capsys, "make", "-o", "x.jsonl", *words)
    assert not Path("x.jsonl").exists()


def test_a_made_trace_can_be_read_however_long_its_chats_are(folder: Path) -> None:
    from fastslow.tools.simulate.trace import read_trace

    long = ("--turns", 1000, "--question-tokens", 100_000, "--answer-tokens", 32_768)
    assert (
        call(
            "make", "-o", "x.jsonl", "--requests", 2000, "--deep", 0, "--think-seconds", 0.5, *long
        )
        == 0
    )
    assert len(read_trace(Path("x.jsonl"))) == 2000


@pytest.mark.parametrize(
    "more",
    [
        {"answers": 5},
        {"finish_reasons": None},
        {"time": "0001-01-01T00:00:00+00:00", "seconds": 1e308},
        {"time": 7},
        {"seconds": float("nan")},
        {"tokens": "many"},
        {"tokens_per_step": None},
        {"prompt_tokens": -1},
    ],
)
def test_logs(more: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("serve.log").write_text(logged(1, **more))
    refused(
        "serve.log, line 1: not a server's line", capsys, "record", "serve.log", "-o", "r.jsonl"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--first-ms", "inf"), "first_seconds=inf must be between 0 and"),
        (("--start-seconds", "inf"), "start_seconds=inf must be between 0 and"),
        (("--modes", ","), "modes=',' names nothing"),
        (("--other-share", "0.2"), "other_share=0.2 needs --beside"),
        (("--model", "no-such-model"), "no-such-model"),
    ],
)
def test_options_of_measure(
    words: tuple[object, ...], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(said, capsys, "measure", "-o", "x.json", *words)


def test_files_that_may_not_be_written(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)  # as for all but root
    refused("'x.jsonl' cannot be written: permission denied", capsys, "make", "-o", "x.jsonl")
    refused("permission denied", capsys, "plan", "-o", "x.json")
    refused("permission denied", capsys, *RUN, "-o", "t.jsonl")
