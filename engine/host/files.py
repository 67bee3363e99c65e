"""The folder of what fastslow makes once and keeps, and reading files of others: with limits."""

from __future__ import annotations

import atexit
import errno
import json
import mmap
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, BinaryIO

from loguru import logger

from fastslow.engine.params import shown as shown  # noqa: PLC0414 - readers take it from here

MOST_BYTES = 64 << 20  # of a JSON file; an index of 140,000 tensors has a quarter of them
MOST_DEPTH = 64  # lists and objects inside each other
MOST_DIGITS = 40  # of a whole number; tokenizer_config.json often has one of 31
CACHE_VARIABLE = "FASTSLOW_CACHE"
READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def cache_folder() -> Path:
    """For models, packed weights, compiled kernels: FASTSLOW_CACHE, else fastslow in XDG_CACHE_HOME,
    else ~/.cache/fastslow. Where there can be no such folder, this process and those that it starts have a temporary
    one, and one line in the log says so."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    named = os.environ.get(CACHE_VARIABLE) or f"{base}/fastslow"
    folder = Path(named).expanduser()
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(p))
    if os.path.isdir(there) and (there == folder.absolute() or os.access(there, os.W_OK | os.X_OK)):
        return folder
    try:
        instead = mkdtemp(prefix="fastslow-")
    except OSError:  # who writes there says why that fails
        return folder
    said = "nothing can be kept in {}: {} takes its place until this process ends. Point {} at a folder that can be written"
    logger.warning(said, folder, instead, CACHE_VARIABLE)
    os.environ[CACHE_VARIABLE] = instead
    atexit.register(_remove, instead, os.getpid())
    return Path(instead)


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # and not one that was forked
        shutil.rmtree(folder, ignore_errors=True)


def is_file(path: Path) -> bool:
    """Tell whether there is something to read; ValueError where there is something else of this name, such
    as a folder or a link that leads nowhere."""
    try:
        if path.is_file():
            return True
    except OSError as error:  # such as a name that is too long
        raise ValueError(f"{path!s:.200} cannot be read: {error.strerror}") from None
    if os.path.lexists(path):
        raise ValueError(f"{path} cannot be read: it is no file")
    return False


def open_file(path: Path) -> BinaryIO:
    """A file, open for reading. OSError where there is none, or something else of this name: a FIFO
    would keep its reader waiting for ever, and a device has no end."""
    number = os.open(path, READ)
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "it is no file", str(path))
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def mapped(path: Path) -> mmap.mmap:
    """A file in memory, to be read. ValueError where it cannot be, as one that is empty."""
    try:
        with open_file(path) as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, empty when there is no such file.

    ValueError in one sentence when the file is larger than MOST_BYTES, is not valid JSON, nests deeper than
    MOST_DEPTH, has a longer number than MOST_DIGITS, or holds something else than an object.
    """
    if not is_file(path):
        return {}
    try:
        with open_file(path) as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    return parse_object(data, str(path))


def parse_object(data: str | bytes, named: str) -> dict[str, Any]:
    """The JSON object in a text, checked as `read_object` does; `named` is what holds it, for messages."""
    if len(data) > MOST_BYTES:
        raise ValueError(f"{named} has more than {MOST_BYTES >> 20} MiB, the most of a JSON file")
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        value = json.loads(text, parse_int=_integer)
        _check_depth(value)
    except UnicodeDecodeError as error:
        raise ValueError(f"{named} is not valid JSON: byte {error.start} is no UTF-8") from None
    except RecursionError:
        raise ValueError(f"{named} nests deeper than {MOST_DEPTH} lists and objects") from None
    except ValueError as error:
        raise ValueError(f"{named} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{named} must hold a JSON object, not a {type(value).__name__}")
    return value


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits, and {MOST_DIGITS} are the most")
    return int(digits)


def _check_depth(value: Any) -> None:
    """RecursionError where a value nests deeper than MOST_DEPTH."""
    level = [value]
    for _ in range(MOST_DEPTH):
        inner = (x for x in level if isinstance(x, dict | list))
        values = (v for x in inner for v in (x.values() if isinstance(x, dict) else x))
        level = [v for v in values if isinstance(v, dict | list)]
        if not level:
            return
    raise RecursionError


@contextmanager
def about(what: object) -> Iterator[None]:
    """Puts what a ValueError of the block is about in front of it, unless it says so itself."""
    try:
        yield
    except ValueError as error:
        said = str(error)
        raise ValueError(said if str(what) in said else f"{what}: {said}") from None


@contextmanager
def no_panic(said: str, *expected: type[Exception]) -> Iterator[None]:
    """Turns what a library raises into ValueError in one sentence, which begins with `said`: `expected`, and a panic
    of Rust code, which has no name to import and is no Exception."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, expected) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{said}: {shown(' '.join(str(error).split()))[1:-1]}") from None


TEXT, TIED = "text_config", "tie_word_embeddings"
IMAGES = ("vision_", "image_", "video_")  # beginnings of fields that concern no text


def text_part(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a config.json whose text part stands in `text_config`, as those of a model of text alone.

    What both levels say counts as inside, but for tied embeddings, which the whole model's class looks at."""
    if raw.get(TEXT) is None:
        return raw
    if not isinstance(raw[TEXT], Mapping):
        raise ValueError(f"{TEXT} must be an object, got {shown(raw[TEXT])}")
    outer = {n: v for n, v in raw.items() if n != TEXT and not n.startswith(IMAGES)}
    inner = {n: v for n, v in raw[TEXT].items() if v is not None and n != "architectures"}
    return outer | inner | {n: outer[n] for n in (TIED,) if n in outer}
