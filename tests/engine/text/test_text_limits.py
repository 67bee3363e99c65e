"""Tokenizer files that ask for more than any model needs, or that cannot be read."""

import json
from pathlib import Path
from typing import Any

import pytest
from refusals import refused
from tokenizers_tiny import rewrite, write_bpe, write_spm

from fastslow.engine.text import vocabulary
from fastslow.engine.text.templates import load_template
from fastslow.engine.text.tokenizer import load_tokenizer

REPLACE = {"type": "Replace", "pattern": {"String": "ab"}, "content": "ab" * 9}


@pytest.mark.parametrize("steps", [
    [REPLACE] * 2, [{"type": "Sequence", "normalizers": [REPLACE]}, REPLACE],
    [{"type": "Prepend", "prepend": "x" * 100}], [{**REPLACE, "pattern": {"Regex": ""}, "content": "x" * 64}],
    [{"type": "Prepend", "prepend": "x" * 2**22}], [{"type": "Lowercase"}] * 100,
])  # fmt: skip
def test_a_normaliser_that_makes_texts_longer_is_refused(tmp_path: Path, steps: list[Any]) -> None:
    rewrite(tmp_path, normalizer={"type": "Sequence", "normalizers": steps})
    refused("its normalizer makes a text more than 64 times as long", load_tokenizer, tmp_path)


def test_a_normaliser_that_makes_texts_a_little_longer_is_taken(tmp_path: Path) -> None:
    steps = [{"type": "NFKC"}, {"type": "Prepend", "prepend": "▁"}, {**REPLACE, "content": "▁"}]
    rewrite(tmp_path, normalizer={"type": "Sequence", "normalizers": steps})
    assert load_tokenizer(tmp_path).encode("ab")


@pytest.mark.parametrize(("name", "target"), [
    ("tokenizer.json", "/proc/self/mem"), ("tokenizer.json", "/dev/null"), ("tokenizer.model", "/"),
    ("tokenizer.model", "nowhere"), ("chat_template.jinja", "/proc/self/mem"), ("chat_template.jinja", "/"),
])  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, name: str, target: str) -> None:
    if name == "chat_template.jinja":
        write_bpe(tmp_path)
    (tmp_path / name).symlink_to(target)  # a file whose reading fails, a device, a folder, no file
    refused(f"^{tmp_path / name} cannot be read: ", lambda: load_template(tmp_path, load_tokenizer(tmp_path)))


def test_more_than_any_model_needs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bpe(tmp_path)
    for name, content, message in (
        ("config.json", {"eos_token_id": [*range(1001)]}, "config.json: eos_token_id has 1001 ids"),
        ("added_tokens.json", {"<x>": "9" * 6000}, "added_tokens.json has an id of 6000 digits"),
    ):
        (tmp_path / name).write_text(json.dumps(content))
        refused(f"^{message}", load_tokenizer, tmp_path)
        (tmp_path / name).unlink()
    monkeypatch.setattr(vocabulary, "LONGEST_MARK", 5)
    refused(r"^added token \d+ is longer than 5 bytes", load_tokenizer, tmp_path)
    monkeypatch.setattr(vocabulary, "MOST_MARKS", 3)
    for write in (write_bpe, write_spm):
        write(tmp_path / write.__name__)
        refused(r"has \d+ special and added tokens; at most 3", load_tokenizer, tmp_path / write.__name__)
