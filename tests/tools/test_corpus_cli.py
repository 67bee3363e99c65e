"""`fastslow corpus`: from a file of answers to a corpus of what the engine would say."""

from pathlib import Path

import pytest
from checkpoints import write_moge
from cli_tools import printed, record, refusal, write_lines
from tokenizers_tiny import write_bpe

from fastslow.draft.suffix.corpus import Corpus
from fastslow.engine.text.templates import load_template
from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.tools.cli.drafting.corpus import AnswerFile

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
)
CHAT = [
    {"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "On its way."},
    {"role": "user", "content": "When?"}, {"role": "assistant", "content": "Today."},
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_bpe(folder, TEMPLATE)
    return write_moge(folder, vocab=320)


def test_build_add_and_info(model: Path, tmp_path: Path) -> None:
    first = write_lines(tmp_path / "a.jsonl", {"text": "Hello there"}, {"answer": "Good bye", "n": 1})
    out = tmp_path / "c.safetensors"
    said = printed("corpus", "build", first, "-o", out, "--model", model)
    assert "2 answers added, 0 of the oldest dropped" in said
    add = ("corpus", "add", out, write_lines(tmp_path / "b.jsonl", {"messages": CHAT}), "--model", model)
    assert "holds 4 answers" in printed(*add)
    facts = record("corpus", "info", out)
    assert (facts["documents"], facts["vocab_size"]) == (4, 320)
    said = printed(*add, "--most-tokens", facts["tokens"])
    assert "2 answers added, 4 of the oldest dropped" in said
    shown = printed("corpus", "info", out)
    assert "answers     2" in shown and "320 ids" in shown

    tokenizer = load_tokenizer(model)
    made = Corpus(out, tokenizer.vocab())
    prompt = tokenizer.encode("<|im_start|>user: Where is it?<|im_end|><|im_start|>assistant: ")
    found = made.find(prompt[-32:], 99)
    assert found.length == min(32, len(prompt))
    assert {tokenizer.decode(run, skip_special=False) for run in found.runs} == {"On its way.<|im_end|>"}


def test_answers_as_the_engine_would_emit_them(model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(model)
    answers = AnswerFile(tokenizer, load_template(model, tokenizer))
    path = write_lines(tmp_path / "a", {"text": "one\u2028two"}, {"messages": CHAT})
    (end,) = tokenizer.eos_ids
    found = list(answers.read(path))
    assert [answer[-1] for answer, _ in found] == [end] * 3
    assert [tokenizer.decode(answer) for answer, _ in found] == ["one\u2028two", "On its way.", "Today."]
    assert found[0][1] == []
    prompt = tokenizer.decode(found[2][1], skip_special=False)
    assert prompt.endswith("assistant: On its way.<|im_end|><|im_start|>user: When?<|im_end|>"
                           "<|im_start|>assistant: ")  # fmt: skip


def test_of_several_ends_the_templates_own_is_taken(tmp_path: Path) -> None:
    write_bpe(tmp_path, TEMPLATE)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    tokenizer = load_tokenizer(tmp_path)
    answers = AnswerFile(tokenizer, load_template(tmp_path, tokenizer))
    ((answer, _),) = answers.read(write_lines(tmp_path / "a", {"text": "x"}))
    assert tokenizer.eos_ids == {0, 2} and answer[-1] == tokenizer.token_id("<|im_end|>") == 2


@pytest.mark.parametrize(("line", "said"), [
    ('{"question": "x"}', "line 2: needs a JSON object with one of"),
    ('{"text": ""}', "line 2: text='' must be text of at least one character"),
    ('{"answer": 3}', "line 2: answer=3 must be text"),
    ('{"messages": "x"}', "line 2: messages must be a list, not str"),
    ('{"messages": [{"role": "user", "content": "x"}]}', "hold no assistant turn"),
    ('{"messages": [{"role": "assistant"}]}', "content is missing"),
])  # fmt: skip
def test_bad_lines_are_told(model: Path, tmp_path: Path, line: str, said: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": "fine"}, line)
    assert said in refusal("corpus", "build", path, "-o", tmp_path / "c", "--model", model)
    assert not (tmp_path / "c").exists()


def test_other_bad_input(model: Path, tmp_path: Path) -> None:
    good, out = write_lines(tmp_path / "a.jsonl", {"text": "Hello"}), tmp_path / "c"
    other = tmp_path / "other"
    write_bpe(other, TEMPLATE, 321)
    write_moge(other, vocab=321)
    before = good.read_bytes()
    for arguments, said in (
        (("build", tmp_path / "absent", "-o", out), "absent' cannot be read"),
        (("build", write_lines(tmp_path / "none"), "-o", out), "would hold no answer"),
        (("build", good, "-o", good), "exists and is no corpus"),
        (("build", good, "-o", tmp_path), "cannot be written: no such folder, or a folder"),
        (("build", good, "-o", tmp_path / "new" / "c"), "cannot be written: no such folder"),
    ):
        assert said in refusal("corpus", *arguments, "--model", model)
    assert good.read_bytes() == before and "damaged or no sealed file" in refusal("corpus", "info", good)
    for _ in range(2):  # a corpus is overwritten
        printed("corpus", "build", good, "-o", out, "--model", model)
    said = refusal("corpus", "add", out, good, "--model", other)
    assert "made with another vocabulary of 320 ids" in said
