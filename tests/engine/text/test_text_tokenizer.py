"""Both kinds of tokenizer: ids, special tokens, bos and eos, broken files, equal vocabularies."""

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused
from tokenizers import decoders, models
from tokenizers_tiny import PANGU, SPECIAL, edit, rewrite, write_around, write_bpe, write_spm

from fastslow.engine.text.tokenizer import load_tokenizer, same_vocabulary
from fastslow.engine.text.vocabulary import Tokenizer

TEXTS = ["", " ", "Hello there", " two  spaces ", "你好，世界。🙂", "e\u0301 👩‍👩‍👧 ﷽", "a\nb\tc\x00", "▁x"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_both_ways(bpe: Tokenizer, spm: Tokenizer, text: str) -> None:
    assert bpe.decode(bpe.encode(text)) == text
    # SentencePiece writes a space as this character, so the two are one to it.
    assert spm.decode(spm.encode(text)) == text.replace("▁", " ")


@pytest.mark.parametrize("kind", ["bpe", "spm"])
def test_a_long_text_does_not_stop_other_threads(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    text, found = "The quick brown fox. 你好 " * 20_000, list[int]()
    reader = threading.Thread(target=lambda: found.extend(tokenizer.encode(text)))
    reader.start()
    ticks = 0
    while reader.is_alive():
        time.sleep(0.001)
        ticks += 1
    assert ticks > 5, "this thread slept on until the text was read"
    assert tokenizer.decode(found) == text
    if kind == "bpe":
        library: Any = tokenizer._library  # type: ignore[attr-defined]
        assert found == library.encode(text).ids and tokenizer.longest == len("<|endoftext|>")


@given(data=st.data())
def test_bpe_decodes_as_the_library_does(data: st.DataObject, bpe: Tokenizer) -> None:
    ids = data.draw(st.lists(st.integers(0, bpe.vocab_size - 1), max_size=30))
    library: Any = bpe._library  # type: ignore[attr-defined]
    for skip in (True, False):
        assert bpe.decode(ids, skip) == library.decode(ids, skip_special_tokens=skip)


@given(data=st.data())
def test_spm_decodes_as_the_library_does(data: st.DataObject, spm: Tokenizer) -> None:
    # Control and unknown ids have no text there; a broken character is counted differently.
    whole = [i for i in range(3, spm.vocab_size) if not (spm.piece(i) or "").startswith("<0x")]
    ids = data.draw(st.lists(st.sampled_from(whole), max_size=30))
    library: Any = spm._library  # type: ignore[attr-defined]
    assert spm.decode(ids, skip_special=False) == library.decode(ids)


@pytest.mark.parametrize("extra", [{"remove_extra_whitespaces": True}, {"add_dummy_prefix": False}])
def test_spm_prefix_rule_is_read_off_the_model(tmp_path: Path, extra: dict[str, bool]) -> None:
    rules: dict[str, Any] = {"add_dummy_prefix": True, "remove_extra_whitespaces": False} | extra
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c  d"] * 3), model_prefix=str(tmp_path / "tokenizer"), vocab_size=270,
        model_type="bpe", byte_fallback=True, hard_vocab_limit=False, minloglevel=2, num_threads=1, **rules,
    )  # fmt: skip
    tokenizer = load_tokenizer(tmp_path)
    library: Any = tokenizer._library  # type: ignore[attr-defined]
    space, letter = tokenizer.token_id("▁"), tokenizer.token_id("a")
    assert space is not None and letter is not None
    for ids in ([space, letter], [space, space, letter], [letter, space, space], [space] * 3):
        assert tokenizer.decode(ids) == library.decode(ids)


def test_special_tokens_are_parsed_and_unknown_pieces_spelt(bpe: Tokenizer, spm: Tokenizer) -> None:
    im_start, im_end = bpe.token_id("<|im_start|>"), bpe.token_id("<|im_end|>")
    ids = bpe.encode("<|im_start|>user<|im_end|>")
    assert (ids[0], ids[-1]) == (im_start, im_end) and bpe.decode(ids) == "user"
    assert bpe.decode(ids, skip_special=False) == "<|im_start|>user<|im_end|>"
    text = "[unused9]用户：hi</s>[unused10]"
    ids = spm.encode(text, add_special=False)
    assert {spm.token_id("[unused9]"), spm.token_id("</s>"), spm.token_id("[unused10]")} <= {*ids}
    assert spm.decode(ids) == "用户：hi" and spm.decode(ids, skip_special=False) == text
    assert bpe.bos_id == 0 and bpe.eos_ids == {bpe.token_id("<|im_end|>")}
    assert bpe.special_ids == {bpe.token_id(piece) for piece in SPECIAL}
    assert spm.special_ids == {spm.token_id(piece) for piece in (*PANGU, "<unk>", "<s>", "</s>")}
    for tokenizer in (bpe, spm):
        assert tokenizer.token_id("no such piece") is None and tokenizer.piece(tokenizer.vocab_size) is None
        assert tokenizer.decode([tokenizer.vocab_size, 10**9, -1]) == ""
        refused("lone surrogate at position 1", tokenizer.encode, "a\ud800")


def test_bos_as_the_configuration_says(tmp_path: Path) -> None:
    write_spm(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    spm = load_tokenizer(tmp_path)
    assert spm.bos_id == spm.token_id("<s>")
    assert spm.encode("a")[0] == spm.bos_id and spm.encode("") == [spm.bos_id]
    assert spm.bos_id not in spm.encode("a", add_special=False) and spm.encode("<s>a").count(1) == 1
    edit(config, add_bos_token=False)
    assert load_tokenizer(tmp_path).encode("a")[0] != spm.bos_id
    edit(config, add_bos_token=None)
    assert load_tokenizer(tmp_path).encode("a")[0] == spm.bos_id


def test_bos_of_a_post_processor(tmp_path: Path) -> None:
    write_bpe(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    for fields in ({"add_bos_token": True}, {"add_bos_token": None, "tokenizer_class": "OpenPanguV2Tokenizer"}):
        edit(config, **fields)  # which the configuration alone adds
        assert load_tokenizer(tmp_path).encode("a")[0] == 0
    write_around(tmp_path, "<|endoftext|> $A")
    edit(config, add_bos_token=False)
    assert 0 not in load_tokenizer(tmp_path).encode("hello there")
    for say in (None, True):
        edit(config, add_bos_token=say)
        bpe = load_tokenizer(tmp_path)
        assert bpe.encode("hello there") == [0, *bpe.encode("hello there", add_special=False)]
        assert bpe.encode("<|endoftext|>a").count(0) == 1
    assert len(load_tokenizer(tmp_path).encode("hello there")) > 2


def test_eos_is_the_union_of_what_the_files_say(tmp_path: Path) -> None:
    write_spm(tmp_path)
    end = load_tokenizer(tmp_path).token_id("[unused10]")
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [8, 9]}')
    edit(tmp_path / "tokenizer_config.json", eos_token={"content": "[unused11]"})
    spm = load_tokenizer(tmp_path)
    assert spm.eos_ids == {7, 8, 9, end, spm.token_id("[unused11]"), spm.token_id("</s>")}


def test_pieces_that_the_configuration_adds(tmp_path: Path) -> None:
    size = write_spm(tmp_path, added_tokens_decoder={
        "420": {"content": "<|turn|>", "special": True}, "421": {"content": "<hr>", "special": False},
    })  # fmt: skip
    spm = load_tokenizer(tmp_path)
    assert spm.vocab_size == size + 2
    ids = spm.encode("a<|turn|>b<hr>c", add_special=False)
    assert {420, 421} <= {*ids} and 420 in spm.special_ids
    assert spm.decode(ids) == "a b<hr> c"  # each part has a prefix space of its own


def test_a_folder_without_tokenizer(tmp_path: Path) -> None:
    refused("has neither tokenizer.json nor tokenizer.model", load_tokenizer, tmp_path)


@pytest.mark.parametrize("name, content, message", [
    ("tokenizer.json", "{", "is not valid JSON"),
    ("tokenizer.json", "[]", "must hold a JSON object, not a list"),
    ("tokenizer.json", "[" * 10**6, "is not valid JSON|nests deeper"),
    ("tokenizer.json", '{"model": {"type": "evil"}}', "is not a tokenizer"),
    ("tokenizer.model", "", "is not a SentencePiece model"),
    ("tokenizer.model", "garbage", "is not a SentencePiece model"),
    ("config.json", "\xff", "is not valid JSON"),
    ("config.json", '{"eos_token_id": "2"}', "eos_token_id must be an id or a list of ids"),
    ("config.json", '{"eos_token_id": [true]}', "eos_token_id must be an id or a list of ids"),
    ("added_tokens.json", '{"<x>": "y"}', "an id that is not an integer"),
    ("added_tokens.json", '{"<x>": -1}', "a negative id"),
    ("added_tokens.json", '{"<x>": Infinity}', "an id that is not an integer"),
    ("added_tokens.json", '{"<x>": true}', "an id that is not an integer"),
    ("tokenizer_config.json", '{"eos_token": ' + "9" * 5000 + "}", "is not valid JSON"),
])  # fmt: skip
def test_broken_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    if name != "tokenizer.model":
        write_bpe(tmp_path)
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    refused(message, load_tokenizer, tmp_path)


def test_sentencepiece_decoders_of_tokenizer_json(tmp_path: Path) -> None:
    pieces = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁": 256, "a": 257, "▁a": 258}
    library = tokenizers.Tokenizer(models.BPE(pieces, [("▁", "a")]))
    llama = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    ids = [258, 256, 0xE4, 0xBD, 0xA0, 257]
    for decoder, text in (
        (decoders.Sequence([*llama, decoders.Strip(" ", 1, 0)]), "a 你a"), (decoders.Sequence(llama), " a 你a"),
        (decoders.Metaspace(), None), (decoders.Metaspace(prepend_scheme="never"), None),
    ):  # fmt: skip
        library.decoder = decoder
        library.save(str(tmp_path / "tokenizer.json"))
        ours = ids if text is not None else [258, 256, 257]
        assert load_tokenizer(tmp_path).decode(ours) == library.decode(ours)
        assert text is None or library.decode(ids) == text


@pytest.mark.parametrize("decoder", [decoders.WordPiece(), None])
def test_decoders_that_cannot_be_streamed_are_refused(tmp_path: Path, decoder: Any) -> None:
    write_bpe(tmp_path)
    spec = None if decoder is None else json.loads(decoder.__getstate__())
    edit(tmp_path / "tokenizer.json", decoder=spec)
    refused(r"tokenizer\.json: decoder .*(not supported|missing)", load_tokenizer, tmp_path)


def test_same_vocabulary(tmp_path: Path, bpe: Tokenizer, spm: Tokenizer) -> None:
    write_bpe(tmp_path)
    path = tmp_path / "tokenizer.json"
    assert same_vocabulary(bpe, load_tokenizer(tmp_path)) is None
    assert same_vocabulary(bpe, spm) == "the vocabularies have 320 and 420 ids"
    path.write_text(path.read_text("utf-8").replace("<think>", "<thonk>"), "utf-8")
    difference = "token id 3 is '<think>' in one vocabulary, '<thonk>' in the other"
    assert same_vocabulary(bpe, load_tokenizer(tmp_path)) == difference


@pytest.mark.parametrize("number", [2**22, 3_000_000_000, 2**32 - 1])
def test_absurd_ids_are_refused_before_there_is_room_for_them(tmp_path: Path, number: int) -> None:
    rewrite(tmp_path, model={"vocab": {"a": number}, "merges": []}, added_tokens=[])
    refused(f"^a token has id {number}; ids are below 4194304$", load_tokenizer, tmp_path)
    write_spm(tmp_path / "spm", added_tokens_decoder={str(number): {"content": "<x>"}})
    refused(f"^a token has id {number}; ids are below", load_tokenizer, tmp_path / "spm")


@pytest.mark.parametrize("number", ["9" * 400, "-1", "5000000000"])
def test_numbers_that_no_library_can_hold(tmp_path: Path, number: str) -> None:
    write_bpe(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(re.sub('"id": ?0', f'"id":{number}', path.read_text("utf-8"), count=1), "utf-8")
    refused("is not a tokenizer: |has a number of 400 digits", load_tokenizer, tmp_path)


@pytest.mark.parametrize("table", ["AAAA", "//////////8=", "/w", "////fw=="])
@pytest.mark.parametrize("name", ["precompiled_charsmap", "precompiled_ch\\u0061rsmap"])
def test_a_table_that_claims_to_be_longer_than_it_is(tmp_path: Path, table: str, name: str) -> None:
    rewrite(tmp_path, normalizer={"type": "Precompiled", "precompiled_charsmap": table})
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text("utf-8").replace("precompiled_charsmap", name), "utf-8")
    refused("its precompiled_charsmap is damaged$", load_tokenizer, tmp_path)


def test_what_cannot_be_read_or_would_grow_is_refused(tmp_path: Path) -> None:
    """It panics, which is no Exception, where a regular expression takes too many steps."""
    split = {"type": "Split", "pattern": {"Regex": "(a|aa)+$"}, "behavior": "Isolated"}
    rewrite(tmp_path, pre_tokenizer={**split, "invert": False})
    bpe = load_tokenizer(tmp_path)
    refused("^this tokenizer cannot read the text: .*retry-limit", bpe.encode, "a" * 60 + "!")
    assert bpe.decode(bpe.encode("hello")) == "hello"
    write_bpe(tmp_path)
    for name in ("tokenizer.json", "tokenizer.model"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**28 + 1)
        refused(rf"{name} has 268435457 bytes; at most 268435456 are", load_tokenizer, tmp_path)
        (tmp_path / name).unlink()
    for old, new in (("", "y"), ("a", "y" * 16)):
        step = {"type": "Replace", "pattern": {"String": old}, "content": new}
        rewrite(tmp_path, decoder={"type": "Sequence", "decoders": [step]})
        refused("decoder 'Replace' is not supported", load_tokenizer, tmp_path)
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 9}
    rewrite(tmp_path, decoder={"type": "Sequence", "decoders": [step] * 2})
    refused("decoder makes pieces 81 times as long in 2 steps", load_tokenizer, tmp_path)
