"""The examples run, on a tiny checkpoint; what they say of real models they say with real models."""

import json
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
    "embed_in_app.py": ("Ada: ", "Dan left after", "refused: "),
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


def test_prompts_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "prompts.jsonl"
    monkeypatch.setattr(sys, "argv", ["make.py", "--count", "200", "-o", str(out)])
    runpy.run_path(str(EXAMPLES / "prompts" / "make.py"), run_name="__main__")
    made = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert {one["category"] for one in made} == {"maths", "code", "question", "service", "news"}
    assert len({one["prompt"] for one in made}) > 150


def test_a_model_goes_on_with_a_users_first_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bpe(tmp_path, TEMPLATE, 320)
    write_moge(tmp_path, vocab=320, num_hidden_layers=2, hidden_size=32)
    out, words = tmp_path / "prompts.jsonl", EXAMPLES / "prompts" / "words.json"
    monkeypatch.setattr(sys, "argv", ["make.py", "--count", "25", "--model", str(tmp_path), "-o", str(out)])
    runpy.run_path(str(EXAMPLES / "prompts" / "make.py"), run_name="__main__")
    made = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    kinds = json.loads(words.read_text("utf-8"))["openings"]
    firsts = {kind: [one.split("{")[0] for one in kinds[kind]["openings"]] for kind in kinds}
    written = [one for one in made if one["category"] in kinds]
    assert 9 < len(written) <= 16 and len({one["prompt"] for one in written}) == len(written)
    for one in written:
        (*begun,) = (w for w in firsts[one["category"]] if one["prompt"].startswith(w))
        assert begun and len(one["prompt"]) > max(map(len, begun))
