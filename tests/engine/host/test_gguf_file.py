"""GGUF files that are damaged or lie about themselves: one sentence, and no memory for what is not there."""

import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import bases
import gguf
import numpy as np
import pytest
from safetensors.torch import load_file

from fastslow.engine.host.gguf_file import GgufFile, Texts
from fastslow.models.gguf import gguf_to_dense


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("gguf")
    bases.KINDS["gguf"].make(folder / "model")
    return (folder / "m.gguf").read_bytes()


def changed(path: Path, data: bytes, name: str, part: int, value: int) -> bytes:
    """The file with another number in the header: the first of a part of a field or a tensor."""
    path.write_bytes(data)
    reader = gguf.GGUFReader(path, "r+")
    named = reader.fields | {tensor.name: tensor.field for tensor in reader.tensors}
    named[name].parts[part][0] = value
    reader.data.flush()
    return path.read_bytes()


def refused(path: Path, data: bytes, message: str, mode: str = "wb") -> None:
    with path.open(mode) as file:
        file.write(data)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message) as caught:
        gguf_to_dense(path, path.parent / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    said = str(caught.value)
    assert str(path) in said and "\n" not in said and len(said) < 400
    assert peak < 4 << 20 and not (path.parent / "out").exists()


@pytest.mark.parametrize(("name", "part", "value", "message"), [
    ("GGUF.version", 0, 1, "version 1 is not 2 or 3"),
    ("GGUF.tensor_count", 0, 2**40, "1099511627776 tensors are more than there is room for"),
    ("GGUF.kv_count", 0, 2**63, "9223372036854775808 fields are more than there is room for"),
    ("general.architecture", 0, 2**62, "a field's name reaches past the end"),
    ("llama.block_count", 2, 77, "field llama.block_count is of the unknown type 77"),
    ("llama.block_count", 3, 50_000_000, "num_hidden_layers 50000000 must be at most 4096"),
    ("llama.block_count", 3, 2, "lacks tensor model.layers.1"),
    ("tokenizer.ggml.tokens", 4, 2**60, "texts of field tokenizer.ggml.tokens are more"),
    ("tokenizer.ggml.tokens", 3, 9, "of the unknown type 9"),
    ("tokenizer.ggml.token_type", 4, 2**62, "numbers of field tokenizer.ggml.token_type"),
    ("llama.embedding_length", 3, 64, r"has shape \[261, 32\], but its header asks"),
    ("blk.0.attn_q.weight", 2, 2**31, "has 2147483648 axes, not 1 to 4"),
    ("blk.0.attn_q.weight", 3, 2**62, "ends at byte"),
    ("blk.0.attn_q.weight", 3, 33, "last size must be a multiple of 32"),
    ("blk.0.attn_q.weight", 4, 999, "is of the unknown type 999"),
    ("blk.0.attn_q.weight", 5, 2**63, "ends at byte"),
    ("blk.0.attn_q.weight", 5, 0, "overlap"),
])  # fmt: skip
def test_a_number_that_cannot_be(tmp_path: Path, good: bytes, name: str, part: int, value: int, message: str) -> None:
    refused(tmp_path / "bad.gguf", changed(tmp_path / "new.gguf", good, name, part, value), message)


@pytest.mark.parametrize(("change", "message"), [
    (lambda data: b"", "cannot be read"),
    (lambda data: bytes(4) + data[4:], "does not begin with GGUF"),
    (lambda data: data[:100], "no sound GGUF file"),
    (lambda data: data[:-1], "ends at byte"),
    (lambda data: data.replace(b"llama.block_count", b"llama.block_cou\xff\xff"), "not UTF-8"),
    (lambda data: data.replace(b"block_count", b"block_coun_"), "coun_ 1 changes the model"),
    (lambda data: data.replace(b"blk.0.attn_q", b"blk.0.attn_k"), "have the same name"),
    (lambda data: data.replace(b"0.attn_q", b"1.attn_q"), "unexpected tensor model.layers.1"),
    (lambda data: data.replace(b"h e", b"h_e"), "'h_e' must have a space in it"),
    (lambda data: data.replace(b"h e", b"h q"), "tokenizer.ggml.merges: .*out of vocabulary"),
])  # fmt: skip
def test_a_text_or_an_end_that_cannot_be(
    tmp_path: Path, good: bytes, change: Callable[[bytes], bytes], message: str
) -> None:
    refused(tmp_path / "bad.gguf", change(good), message)


def test_what_the_library_reads_is_read(tmp_path: Path, good: bytes) -> None:
    """Every field and tensor as in gguf's own reader."""
    (tmp_path / "good.gguf").write_bytes(good)
    ours, theirs = GgufFile.read(tmp_path / "good.gguf"), gguf.GGUFReader(tmp_path / "good.gguf")
    plain = {
        k: v.tolist() if isinstance(v, np.ndarray) else v.read() if isinstance(v, Texts) else v
        for k, v in ours.fields.items()
    }
    assert {k: v for k, v in plain.items() if k != "general.architecture"} == {
        name: field.contents()
        for name, field in theirs.fields.items()
        if not name.startswith("GGUF.") and name != "general.architecture"
    }
    for one, two in zip(ours.tensors, theirs.tensors, strict=True):
        assert (one.name, one.kind) == (two.name, two.tensor_type) and bytes(one.data) == bytes(two.data)
        assert one.shape == tuple(two.shape[::-1])
    assert len(load_file(gguf_to_dense(tmp_path / "good.gguf", tmp_path / "out") / "q4_1.blocks")) == 7


def header(tensors: int = 0, fields: int = 1) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, fields)


def field(kind: int, numbers: str, *values: int) -> bytes:
    """A file whose only field is x."""
    return header() + struct.pack(f"<QcI{numbers}", 1, b"x", kind, *values)


@pytest.mark.parametrize(("data", "message"), [
    (field(8, "Q", 3 << 30), "field x has 3221225472 bytes, and 16777216 are the most"),
    (header() + struct.pack("<Q", 2 << 30), "a field's name has 2147483648"),
    (field(9, "IQ", 8, 1 << 27), "134217728 texts of field x are too many"),
    (field(9, "IQ", 0, 1 << 31), "2147483648 numbers of field x are too"),
    (header(2_000_000, 0), "2000000 tensors are too many, 100000"),
    (header(0, 1 << 26), "67108864 fields are too many, 10000"),
])  # fmt: skip
def test_a_header_has_limits_of_its_own(tmp_path: Path, data: bytes, message: str) -> None:
    """The file has the room: most of it is a hole."""
    path = tmp_path / "bad.gguf"
    path.touch()
    os.truncate(path, 4 << 30)
    refused(path, data, message, "r+b")
