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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moge")
    write_bpe(folder, TEMPLATE, 320)
    return write_moge(folder, vocab=320, num_hidden_layers=2, hidden_size=32)


def run(name: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        patch.setenv("COLUMNS", "160")
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.parametrize("name", QUICK)
def test_an_example_runs(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, said = QUICK[name]
    printed = run(name, [str(folder), *arguments], capsys)
    for words in said:
        assert words in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["customer_service_bot.py", "tune_acceptance.py", "embed_in_app.py", "quickstart.py"]
)
def test_an_example_runs_with_the_built_in_model(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run(name, [], capsys)
    for words in QUICK[name][1]:
        assert words in printed or words == "3 of 3"
