"""The view of a user's program: names and types from `fastslow` alone, and answers as JSON."""

import ast
import json
import re
import runpy
import time
from pathlib import Path

import pytest

from fastslow import LLM, Completion, Output, SamplingParams

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests/support/public_program.py"


def test_a_program_runs(tiny_chat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not re.search(r"\b(cast|ignore|Any)\b", PROGRAM.read_text("utf-8")), "mypy checks it"
    runpy.run_path(str(PROGRAM))["main"](str(tiny_chat))
    assert "tokens/s" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_import_nothing_else_of_ours(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in found if name and name.startswith("fastslow.")}


def test_an_output_is_plain_json(tiny_chat: Path) -> None:
    params = SamplingParams(max_tokens=6, n=2, logprobs=2, prompt_logprobs=1, logit_bias={5: -100})
    with LLM(tiny_chat) as llm:
        out = llm.generate("one two", params, speculation="ngram")
    record = out.to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["prompt_tokens"] == len(record["prompt_token_ids"]) > 0
    assert record["prompt_logprobs"][0] is None and len(record["choices"]) == 2
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


def test_an_answer_of_one_step_has_a_speed_and_json_a_word_for_it(tiny_chat: Path) -> None:
    with LLM(tiny_chat) as llm:
        started = time.monotonic()
        metrics = llm.generate("one two", SamplingParams(max_tokens=1)).metrics
        spent = time.monotonic() - started
    assert (metrics.steps, metrics.tokens, metrics.tpot) == (1, 1, 0.0) and 0 < metrics.run_seconds < spent
    assert metrics.tokens_per_second == 1 / metrics.run_seconds
    with LLM(tiny_chat) as llm:
        choice = llm.generate("one", SamplingParams(max_tokens=1)).choices[0]
    never = Completion("", "", [3], "stop", 3, [{3: float("-inf"), 4: -0.5}], choice.metrics)
    assert never.to_dict()["logprobs"] == [{"3": None, "4": -0.5}]
    assert Output(None, [1], [never]).to_dict()["prompt_logprobs"] is None
