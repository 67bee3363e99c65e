"""The examples run, on a tiny checkpoint; what they say of real models they say with real models."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from checkpoints import write_moge
from tokenizers_tiny import write_bpe

EXAMPLES = Path(__file__).parents[2] / "examples"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"
    "{% if enable_thinking is defined and enable_thinking %}<think>{% endif %}"
)
QUICK = {
    "customer_service_bot.py": (
        [],
        ["4 customers", "first word after", "tokens of the prompt known"],
    ),
    "tune_acceptance.py": (["--tokens", "8"], ["lossy-stepwise at 0.6", "3 of 3", "tokens/step"]),
    "embed_in_app.py": (
        ["--tokens", "8"],
        ["Ada: ", "Dan left after", "refused: ", "the app ticked"],
    ),
    "quickstart.py": ([], ["--- fast", "--- deep", "--- a batch"]),
}


def run(name: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        patch.setenv("COLUMNS", "160")
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("built_in", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_example_runs(
    name: str, built_in: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, said = QUICK[name]
    if not built_in:
        write_bpe(tmp_path, TEMPLATE, 320)
        write_moge(tmp_path, vocab=320, num_hidden_layers=2, hidden_size=32)
        arguments = [str(tmp_path), *arguments]
    printed = run(name, [] if built_in else arguments, capsys)
    for words in said:
        assert words in printed or (built_in and words == "3 of 3")
