"""The examples run, on a tiny checkpoint; what they say of real models they say with real models."""

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
QUICK = {  # what an example says
    "customer_service_bot.py": ("4 customers", "first word after", "tokens of the prompt known"),
    "quickstart.py": ("--- fast", "--- deep", "--- a batch"),
}


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("built_in", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_example_runs(
    name: str, built_in: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not built_in:
        write_bpe(tmp_path, TEMPLATE, 320)
        write_moge(tmp_path, vocab=320, num_hidden_layers=2, hidden_size=32)
    monkeypatch.setattr(sys, "argv", [name, *([] if built_in else [str(tmp_path)])])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    printed = capsys.readouterr().out
    assert all(words in printed for words in QUICK[name])
