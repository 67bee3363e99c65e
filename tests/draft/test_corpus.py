"""A corpus file: whole or refused, of this vocabulary or refused, old or new but never in between."""

import json
import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refused
from safetensors.numpy import load_file, save_file

from fastslow.draft.suffix import sealed
from fastslow.draft.suffix.corpus import FORMAT, Corpus, describe, save, unpack, vocabulary_digest
from fastslow.draft.suffix.documents import Documents
from fastslow.draft.suffix.sealed import read_sealed, write_sealed

VOCAB = {chr(97 + i): i for i in range(8)}


def store(path: Path, *texts: list[int]) -> Path:
    made = Documents()
    for text in texts:
        made.add(text)
    save(path, made, VOCAB)
    return path


def follows(corpus: Corpus, recent: list[int]) -> list[list[int]]:
    return [list(run) for run in corpus.find(recent, 99).runs]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return store(tmp_path / "corpus.safetensors", [0, 1, 2, 3], [4, 1, 2, 5])


def test_what_was_saved_is_found(path: Path) -> None:
    corpus = Corpus(path, VOCAB)
    assert follows(corpus, [0, 1]) == [[2, 3]] and sorted(follows(corpus, [7, 2])) == [[3], [5]]
    facts = describe(path)
    assert facts["documents"] == 2 and facts["tokens"] == 10 and facts["vocab_size"] == 8
    assert facts["vocabulary"] == vocabulary_digest(VOCAB)
    assert set(load_file(path)) == {"tokens", "sizes", "order", "buckets"}, "plain safetensors"
    os.umask(mask := os.umask(0))
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask, "the rights of any new file"


def test_a_file_that_is_flipped_or_cut_anywhere_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    draw = random.Random(0)
    wrong = [whole[:length] for length in range(len(whole))] + [whole + b"\0"]
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 1 << draw.randrange(8)
        wrong.append(bytes(broken))
    for data in wrong:
        path.write_bytes(data)
        refused(r"corpus\.safetensors (is damaged|cannot be read)", Corpus, path, VOCAB)
    refused("is damaged", unpack, path, VOCAB)  # to be added to
    path.write_bytes(whole)
    Corpus(path, VOCAB)


def test_other_files_and_other_vocabularies_are_refused(path: Path, tmp_path: Path) -> None:
    for other in ({**VOCAB, "a": 1, "b": 0}, {**VOCAB, "z": 8}, {}):
        refused("another vocabulary of 8 ids; build it again", Corpus, path, other)
    Corpus(path, dict(reversed(VOCAB.items())))
    refused("absent cannot be read: ", Corpus, tmp_path / "absent", VOCAB)
    save_file({"tokens": np.zeros(3, np.int32)}, tmp_path / "plain")
    refused("no sealed file", Corpus, tmp_path / "plain", VOCAB)
    write_sealed(tmp_path / "other", {"tokens": np.zeros(3, np.int32)}, {"format": "x-2"})
    refused(f"format 'x-2', which is not '{FORMAT}'$", describe, tmp_path / "other")
    write_sealed(tmp_path / "kind", {"tokens": np.zeros(3, np.float32)}, {"format": FORMAT})
    refused("header that cannot be understood", Corpus, tmp_path / "kind", VOCAB)


@pytest.mark.parametrize(("name", "place", "value"), [
    *(("tokens", 0, 8), ("tokens", 0, -2), ("tokens", -1, 0)),
    *(("order", 0, 10), ("order", 0, 0), ("buckets", (3, 1), 99), ("buckets", (0, 0), 5)),
    *(("sizes", (0, 0), 4), ("sizes", (0, 1), 5)), ("buckets", None, lambda a: a[:-1]),
    ("order", None, lambda a: a.astype(np.int64)), ("order", None, lambda a: a.reshape(1, -1)), ("sizes", None, None),
])  # fmt: skip
def test_a_seal_is_not_believed_alone(path: Path, name: str, place: Any, value: Any) -> None:
    """Whoever can write a file can seal it: no number of it may lead out of bounds."""
    found = read_sealed(path)
    arrays: dict[str, Any] = dict(found.arrays)
    assert not any(a.flags.owndata or a.flags.writeable for a in arrays.values()), "copied"
    if value is None:
        del arrays[name]
    elif place is None:
        arrays[name] = value(arrays[name])
    else:
        arrays[name] = arrays[name].copy()
        arrays[name][place] = value
    write_sealed(path, arrays, found.facts)
    said = "numbers outside their range" if value is not None else "not a corpus's"
    refused(said, Corpus, path, VOCAB)


def test_answers_are_added_and_the_oldest_go(path: Path) -> None:
    corpus = Corpus(path, VOCAB)
    more = unpack(path, VOCAB)
    more.add([6, 1, 2, 7])
    assert more.trim(15) == 0 and more.trim(14) == 1
    save(path, more, VOCAB)
    assert describe(path)["documents"] == 2 and sorted(follows(Corpus(path, VOCAB), [7, 2])) == [[5], [7]]
    # The file that was open is still the old one, where it lay.
    assert sorted(follows(corpus, [7, 2])) == [[3], [5]] and more.trim(0) == 2
    refused("would hold no answer$", save, path, more, VOCAB)
    assert describe(path)["documents"] == 2


def test_a_write_that_fails_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no space left")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match="no space left"):
                store(path, [1, 2])
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path], "something was left behind"


def reseal(path: Path, change: Callable[[dict[str, Any]], None], room: int = 0) -> None:
    """Change the header, keep the data, `room` bytes further on, and make the seal fit."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    header["__metadata__"]["seal"] = "0" * 64
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (room - len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        place = sealed._seal_place(memory)
        assert place is not None
        memory[place : place + 64] = sealed._digest(memory, place)


@pytest.mark.parametrize(("entry", "said"), [
    ({}, None), pytest.param({}, "begins between two numbers", id="a byte further on"),
    ({"shape": [-1, 10]}, "a size that is no whole number"),
    ({"shape": [2**70, 0], "data_offsets": [0, 0]}, "cannot be understood"),
    ({"data_offsets": [-4, 36]}, "a size that is no whole number"),
    ({"data_offsets": [0, 2**62]}, "reaches outside the file"),
    ({"data_offsets": [0, 2**20], "shape": [2**18]}, "reaches outside the file"),
    ({"data_offsets": [2, 42]}, "begins between two numbers|reaches outside the file"),
    ({"dtype": "F32"}, "cannot be understood"), ([[[[]]]] * 3, "cannot be understood"),
])  # fmt: skip
def test_a_sealed_header_is_not_believed_either(path: Path, entry: Any, said: str | None) -> None:
    """The kernels read numbers where they lie."""

    def change(header: dict[str, Any]) -> None:
        tokens = header["tokens"]
        header["tokens"] = {**tokens, **entry} if isinstance(entry, dict) else entry

    reseal(path, change, room=17 if entry == {} and said else 8)
    if said is None:
        Corpus(path, VOCAB)
        return
    caught = refused(said, Corpus, path, VOCAB)
    assert str(path) in caught and len(caught) < 300
