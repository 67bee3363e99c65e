"""What a user's program sees: names and types from `fastslow` alone, and answers as JSON."""

from __future__ import annotations

import ast
import json
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastslow import LLM, Output, SamplingParams
from fastslow.output import Completion

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests/support/public_program.py"
TRAINING = ("train_abacus.py", "train_smollm2_moge.py")  # makes a model, so it knows more


def checked(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a type checker says; skips the test where it is not installed."""
    command = shutil.which(name, path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip(f"{name} is not installed")
    return subprocess.run(
        [command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("checker", [("mypy", "--strict"), ("pyright",)], ids=str)
def test_a_program_type_checks(checker: tuple[str, ...]) -> None:
    source = PROGRAM.read_text("utf-8")
    assert "cast" not in source and "ignore" not in source and "Any" not in source
    done = checked(*checker, str(PROGRAM))
    assert done.returncode == 0, done.stdout + done.stderr


MISTAKES = (
    'llm.generate({"a text"})',
    'llm.generate("one", mode=["fast", "deep"])',
    'llm.chat("one", sampling="greedy")',
    'llm.stream(["one", "two"])',
    'llm.generate(["one"]).text',
    'llm.generate("one")[0]',
    "llm.generate(numpy.array([5, 6]))",
    'llm.submit(["one", "two"])',
    'llm.submit("one", max_tokens=5)',
    'llm.stream_chat("one", max_tokens=5)',
    'llm.generate("one", timeout="5")',
    "fastslow.AsyncLLM(max_runing=5)",
    'fastslow.AsyncLLM().stream(["one", "two"])',
)


@pytest.mark.slow
def test_a_type_checker_sees_what_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "\n".join(("import numpy, fastslow", "llm = fastslow.LLM()", *MISTAKES)), "utf-8"
    )
    said = checked("mypy", "--strict", str(wrong)).stdout
    lines = {int(line.split(":")[1]) for line in said.splitlines() if ": error: " in line}
    assert lines == set(range(3, 3 + len(MISTAKES))), said


def test_a_program_runs(tiny_chat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(PROGRAM))["main"](str(tiny_chat))
    assert "tokens/s" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_import_nothing_else_of_ours(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    inside = {name for name in found if name and name.startswith("fastslow.")}
    assert not inside or path.name in TRAINING


def test_an_output_is_plain_json(tiny_chat: Path) -> None:
    params = SamplingParams(max_tokens=6, n=2, logprobs=2, prompt_logprobs=1, logit_bias={5: -100})
    with LLM(tiny_chat) as llm:
        out = llm.generate("one two", params, speculation="ngram")
    record = out.to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["prompt_tokens"] == len(record["prompt_token_ids"]) > 0
    assert record["prompt_logprobs"][0] is None
    assert len(record["choices"]) == 2
    first = record["choices"][0]
    assert first["text"] == out.text and first["token_ids"] == out.token_ids
    assert first["finish_reason"] == out.finish_reason and first["error"] is None
    table = first["logprobs"][0]
    assert out.logprobs is not None and table == {str(k): v for k, v in out.logprobs[0].items()}
    metrics = first["metrics"]
    assert metrics["tokens"] == 6 and metrics["steps"] == out.metrics.steps
    assert metrics["tokens_per_second"] == out.metrics.tokens_per_second > 0
    assert metrics["acceptance_rate"] == out.metrics.acceptance_rate
    assert record["text"] == out.text and record["finish_reason"] == "length"
    assert record["tokens_per_second"] == out.metrics.tokens_per_second
    assert metrics["prompt_tokens"] == record["prompt_tokens"]


def test_an_answer_of_one_step_has_a_speed(tiny_chat: Path) -> None:
    with LLM(tiny_chat) as llm:
        started = time.monotonic()
        metrics = llm.generate("one two", SamplingParams(max_tokens=1)).metrics
        spent = time.monotonic() - started
    assert (metrics.steps, metrics.tokens, metrics.tpot) == (1, 1, 0.0)
    assert 0 < metrics.run_seconds < spent
    assert metrics.tokens_per_second == 1 / metrics.run_seconds


def test_what_json_has_no_word_for(tiny_chat: Path) -> None:
    with LLM(tiny_chat) as llm:
        choice = llm.generate("one", SamplingParams(max_tokens=1)).choices[0]
    never = Completion("", "", [3], "stop", 3, [{3: float("-inf"), 4: -0.5}], choice.metrics)
    assert never.to_dict()["logprobs"] == [{"3": None, "4": -0.5}]
    assert Output(None, [1], [never]).to_dict()["prompt_logprobs"] is None
