"""Token ids beside the model's vocabulary come through no door: the model would read foreign memory."""

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_moge
from gate import open_llm
from refusals import refused
from tokenizers import AddedToken, Tokenizer
from tokenizers_tiny import write_bpe

from fastslow import LLM, Mode, SamplingParams, Speculation
from fastslow.draft.suffix.corpus import save
from fastslow.draft.suffix.documents import Documents

VOCAB = 320
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}{{ ending }}"
NEW = "<new>"  # id 320: added to the tokenizer, and the embedding was not resized
FEW = SamplingParams(max_tokens=4, ignore_eos=True)


def write(folder: Path, *added: str, template: str = TEMPLATE, **config: Any) -> Path:
    write_bpe(folder, template, VOCAB)
    path = folder / "tokenizer.json"
    library = Tokenizer.from_file(str(path))
    library.add_tokens([AddedToken(piece, normalized=False) for piece in added])
    library.save(str(path))
    return write_moge(folder, vocab=VOCAB, num_hidden_layers=1, **config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("added"), NEW)


OUTSIDE = r"^the prompt holds '<new>', whose token id 320 is outside the vocabulary 0\.\.319"


def test_an_added_token_that_nobody_uses_does_no_harm(folder: Path, logged: list[str]) -> None:
    with open_llm(folder) as llm:
        assert len(llm.chat("hello", FEW).token_ids) == 4
    assert sum("added tokens 320 to 320 lie outside" in line for line in logged) == 1


@pytest.mark.parametrize("prompt", [f"a{NEW}b", [{"role": "user", "content": f"a{NEW}b"}]])
def test_a_prompt_with_such_a_token_is_refused(llm: LLM, prompt: Any) -> None:
    refused(OUTSIDE, llm.generate, prompt, FEW)
    assert len(llm.generate([5, 6], FEW).token_ids) == 4


def test_what_the_template_writes_is_checked(tmp_path: Path) -> None:
    folder = write(tmp_path, NEW, template=TEMPLATE.replace("ending", f"'{NEW}'"))
    with open_llm(folder) as llm, pytest.raises(ValueError, match=OUTSIDE):
        llm.chat("hello", FEW)


def test_a_closing_phrase_is_checked(tmp_path: Path) -> None:
    with open_llm(write(tmp_path, NEW, template=TEMPLATE.replace("ending", "'<think>'"))) as llm:
        for budget in (0, 3):
            mode = Mode(thinking_budget=budget, closing=f"so{NEW}")
            refused(r"^closing='so<new>' holds token id 320, outside", llm.chat, "hello", FEW, mode=mode)


def test_tags_and_tokenizers_outside_the_vocabulary_are_refused_and_end_tokens_end_nothing(
    tmp_path: Path, logged: list[str]
) -> None:
    folder = write(tmp_path, "<reason>", "</reason>")
    tags = ("<reason>", "</reason>")
    refused(r"^thinking tag '</reason>' is a token outside", open_llm, folder, thinking_tags=tags)
    (folder / "fastslow.json").write_text(json.dumps({"thinking_tags": tags}))
    with open_llm(folder) as llm:
        assert len(llm.chat("hello", FEW, mode="deep").token_ids) == 4
    assert any("the model does not think" in line for line in logged)
    write_bpe(tmp_path, TEMPLATE, 400)
    write_moge(tmp_path, vocab=300, num_hidden_layers=1)
    refused(r"ids reach to \d+, but the model's vocab_size is 300$", open_llm, tmp_path)
    folder = write(tmp_path)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 320, 4294967296]}')
    with open_llm(folder) as llm:
        assert llm.generate([5], SamplingParams(min_tokens=2, max_tokens=4)).token_ids
    assert any(line.startswith("end tokens [320, 4294967296] are outside") for line in logged)


def test_a_corpus_with_such_tokens_is_refused(llm: LLM, tmp_path: Path) -> None:
    documents = Documents()
    documents.add([5, 6, 320, 7])
    assert llm.tokenizer is not None
    save(tmp_path / "c", documents, llm.tokenizer.vocab())
    with pytest.raises(ValueError, match=r"c holds token id 320, outside the model's vocab_size"):
        llm.generate([5, 6], FEW, speculation=Speculation(drafter="suffix", corpus=tmp_path / "c"))


def test_a_post_processor_with_an_id_that_no_piece_has(tmp_path: Path) -> None:
    folder = write(tmp_path, NEW)
    path = folder / "tokenizer.json"
    both = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    added = {
        "type": "TemplateProcessing", "single": both, "pair": both,
        "special_tokens": {"<s>": {"id": "<s>", "ids": [999], "tokens": ["<s>"]}},
    }  # fmt: skip
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"post_processor": added}))
    (folder / "tokenizer_config.json").unlink()  # it says that there is no bos
    said = "^the prompt holds a token, whose token id 999 is outside"
    with open_llm(folder) as llm, pytest.raises(ValueError, match=said):
        llm.generate("hello", FEW)
