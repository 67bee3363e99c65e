"""Files of others: read within limits, refused in one sentence."""

import atexit
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusals import refused

from fastslow.draft.head.config import read_head
from fastslow.draft.suffix.sealed import read_sealed
from fastslow.engine.backends.cpu.store import _known
from fastslow.engine.host import files
from fastslow.engine.host.files import MOST_DEPTH, MOST_DIGITS, no_panic, open_file, parse_object, read_object
from fastslow.engine.host.gguf_file import GgufFile


def nested(depth: int) -> str:
    return '{"a": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


@pytest.mark.parametrize(("data", "message"), [
    (b'{"a": 1', "is not valid JSON: Expecting ',' delimiter"),
    (b"", "is not valid JSON"),
    (b'{"a": "\xff"}', "is not valid JSON: byte 7 is no UTF-8"),
    (b"[1, 2]", "must hold a JSON object, not a list"),
    (b'{"a": ' + b"9" * 400 + b"}", "it has a number of 400 digits, and 40 are the most"),
    (b'{"a": -' + b"9" * 5000 + b"}", "it has a number of 5001 digits"),
    (nested(MOST_DEPTH + 1).encode(), f"nests deeper than {MOST_DEPTH} lists and objects"),
    (nested(500_000).encode(), f"nests deeper than {MOST_DEPTH} lists and objects"),
])  # fmt: skip
def test_a_bad_file_is_refused_in_one_sentence(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    said = refused(message, read_object, path)
    assert said.startswith(str(path)) and len(said) < 250


def test_a_large_file_is_refused_before_it_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(files.MOST_BYTES + 1)  # a hole: it takes no room
    monkeypatch.setattr(json, "loads", None)
    refused("has more than 64 MiB, the most of a JSON file", read_object, path)


def test_what_is_usual_is_read(tmp_path: Path) -> None:
    value: dict[str, Any] = {"model_max_length": 10**30 + 1, "a": [{"b": [-1.5, None, True, "ü"]}]}
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(value))
    assert read_object(path) == value and read_object(tmp_path / "missing.json") == {}
    assert parse_object(nested(MOST_DEPTH), "it")
    assert parse_object(f'{{"a": {"9" * MOST_DIGITS}}}', "it") == {"a": 10**MOST_DIGITS - 1}


@pytest.mark.parametrize("kind", ["folder", "nowhere", "itself"])
def test_what_is_there_and_no_file_is_not_taken_for_missing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "generation_config.json"
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere" if kind == "nowhere" else path.name)
    refused(r"generation_config\.json cannot be read: it is no file", read_object, path)


def test_a_panic_of_a_library_is_a_sentence(tmp_path: Path) -> None:
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(ValueError, match="x cannot be read: index out of range"), no_panic("x cannot be read"):
        raise panic("index\nout of range")
    with pytest.raises(KeyError), no_panic("x cannot be read"):
        raise KeyError("not meant")
    with pytest.raises(KeyboardInterrupt), no_panic("x cannot be read"):
        raise KeyboardInterrupt


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)], ids=["fifo", "folder", "device"]
)
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, make: Callable[[Path], object]) -> None:
    """Each reader says so at once: a FIFO without a writer blocks whoever opens it."""
    make(path := tmp_path / "odd")
    with pytest.raises(OSError, match="it is no file"):
        open_file(path)
    for read in (read_sealed, read_head, GgufFile.read):
        refused("odd cannot be read: .*it is no file", read, path)
    assert _known(path) == {}


def file(path: Path) -> Path:
    path.write_text("no folder")
    return path


@pytest.mark.parametrize("variable", ["FASTSLOW_CACHE", "XDG_CACHE_HOME"])
@pytest.mark.parametrize("below", [True, False])
def test_where_nothing_can_be_kept_a_temporary_folder_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str], variable: str, below: bool
) -> None:
    """Also by processes that are started; it goes at the end."""
    monkeypatch.setenv("FASTSLOW_CACHE", "")
    place = file(tmp_path / "fastslow")
    monkeypatch.setenv(variable, str(place / "cache" if below or variable[0] == "X" else place))
    ends: list[Any] = []
    monkeypatch.setattr(atexit, "register", lambda *given: ends.append(given))
    folder = files.cache_folder()
    assert folder == files.cache_folder() == Path(os.environ["FASTSLOW_CACHE"])
    assert folder.is_dir() and len(logged) == len(ends) == 1
    assert f"kept in {place}" in logged[0] and "Point FASTSLOW_CACHE at a folder" in logged[0]
    ((remove, *given),) = ends
    remove(given[0], given[1] + 1)  # by another process
    assert folder.is_dir()
    remove(*given)
    assert not folder.exists()


def test_a_folder_that_is_there_or_can_be_made_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    """A folder that cannot be written is used, too: an image may bring a full cache, or no other can be made."""
    monkeypatch.setenv("FASTSLOW_CACHE", str(tmp_path / "some" / "where"))
    assert files.cache_folder() == tmp_path / "some" / "where"
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setenv("FASTSLOW_CACHE", str(tmp_path))
    assert files.cache_folder() == tmp_path and not logged

    def none(**_: str) -> None:
        raise OSError("no usable temporary directory")

    monkeypatch.setattr(files, "mkdtemp", none)
    monkeypatch.setenv("FASTSLOW_CACHE", str(tmp_path / "new"))
    assert files.cache_folder() == tmp_path / "new"
