"""A GGUF file's header and tensors, every number checked against the file's size before it is used.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3. A model may lie in
several files, NAME-00001-of-00003.gguf and on: the first has the fields, and each has some of the tensors. Its layer
for multi-token prediction may lie in a file beside it, mtp-NAME.gguf.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import pairwise
from math import prod
from os.path import commonprefix
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from loguru import logger
from numpy.typing import NDArray

from fastslow.engine.host.files import mapped, shown

MAGIC = b"GGUF"
VERSIONS = 2, 3
TEXT, ARRAY = 8, 9
BLOCKS, DRAFTS = (
    "block_count",
    "nextn_predict_layers",
)  # of all layers, and of those that predict further tokens
NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd"))  # value type -> struct's
LEAST_FIELD, LEAST_TENSOR, LEAST_TEXT = 13, 24, 8  # bytes that one takes
MOST_AXES = 4
MOST_HEADER = 256 << 20  # bytes before the tensors; a vocabulary of 256,000 has 15 MB
MOST_TEXT, MOST_NAME = 16 << 20, 1000  # bytes of a value, and of a field's or a tensor's name
MOST_ITEMS = 4_000_000  # of all arrays
MOST_FIELDS, MOST_TENSORS = 10_000, 100_000
MOST_ALIGNMENT = 1 << 20
PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
BLOCK = re.compile(r"blk\.(\d{1,9})\.")  # a layer's tensor
SIZE = struct.Struct("<Q")


def is_gguf(path: Path) -> bool:
    """Tell whether a model's path is that of a GGUF file, and not of a folder."""
    return path.suffix == ".gguf" and path.is_file()


def gguf_parts(path: Path) -> list[Path]:
    """The files of a model of which `path` is one. ValueError where one is missing."""
    named = PART.fullmatch(path.name)
    if named is None:
        return [path]
    count = int(named[3])
    names = (f"{named[1]}-{n:05}-of-{count:05}.gguf" for n in range(1, count + 1))
    parts = [path.with_name(name) for name in names]
    for part in parts:
        if not part.is_file():
            raise ValueError(f"{path} is one of {count} files, of which {part.name} is missing")
    return parts


def read_gguf(path: Path) -> GgufFile:
    """A model's header and tensors, of all its files. What is read of a file lasts until it changes.
    ValueError in one sentence for a file that is missing, damaged, or of another model."""
    file, beside = _read_parts(gguf_parts(path)), drafts_beside(path)
    return file if beside is None else file.drafting(_read_parts([beside]))


def gguf_files(path: Path) -> list[Path]:
    """All files that `read_gguf` reads."""
    beside = drafts_beside(path)
    return gguf_parts(path) if beside is None else [*gguf_parts(path), beside]


def drafts_beside(path: Path) -> Path | None:
    """The file beside a model that has no layer for multi-token prediction, which has that layer. Of several that fit
    its sizes, the one that is named most like it."""
    model, found = _read_parts(gguf_parts(path)), list[Path]()
    if model.own(DRAFTS):
        return None
    for other in sorted(path.parent.glob("mtp-*.gguf")):
        try:
            file = _read_parts([other])
        except ValueError as error:
            _say(f"a file beside {path.name} is not read: {error}")
            continue
        drafts, blocks = file.own(DRAFTS), (file.own(BLOCKS), model.own(BLOCKS))
        whole = all(isinstance(number, int) for number in (drafts, *blocks))
        if whole and drafts > 0 and blocks[0] - blocks[1] == drafts and file.like(model):
            found.append(other)
    nearest = most_like(path.name, [other.name for other in found])
    return None if nearest is None else path.with_name(nearest)


def most_like(name: str, others: Sequence[str]) -> str | None:
    """Of files mtp-NAME.gguf the one whose name begins most as another file's does."""

    def alike(other: str) -> int:
        return len(commonprefix((name.lower(), other.lower().removeprefix("mtp-"))))

    return max(others, key=alike, default=None)


@cache
def _say(sentence: str) -> None:
    """Once: a model's files are read several times."""
    logger.warning(sentence)


def _read_parts(parts: Sequence[Path]) -> GgufFile:
    try:
        facts = [(str(part), part.stat()) for part in parts]
    except OSError as error:
        raise ValueError(f"{parts[0]} cannot be read: {error.strerror}") from None
    return _read(tuple((n, f.st_ino, f.st_size, f.st_mtime_ns, f.st_ctime_ns) for n, f in facts))


@lru_cache(maxsize=4)  # opening a model asks for it several times
def _read(parts: tuple[tuple[str, int, int, int, int], ...]) -> GgufFile:
    paths = [Path(name) for name, *_ in parts]
    files = [GgufFile.read(path) for path in paths]
    for number, (path, file) in enumerate(zip(paths, files)):
        said = file.fields.get("split.count", 1), file.fields.get("split.no", 0)
        if said != (len(files), number):
            raise ValueError(
                f"{path}: split.count {shown(said[0])} and split.no {shown(said[1])} are not those of "
                f"file {number} of {len(files)}"
            )
    tensors = [tensor for file in files for tensor in file.tensors]
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise ValueError(f"{paths[0]}: two of its files have a tensor of the same name")
    return replace(files[0], tensors=tensors)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """shape: rows first, as in torch. data: uint8 [..., bytes of a row], a view of the mapped file."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    data: NDArray[np.uint8]


class Texts:
    """An array of texts in a file, read when they are asked for: a vocabulary has 400,000 of them."""

    def __init__(self, memory: mmap.mmap, key: str, first: int, count: int) -> None:
        self._memory, self._key, self._first, self._count = memory, key, first, count

    def __len__(self) -> int:
        return self._count

    def read(self) -> list[str]:
        """ValueError where one is not UTF-8."""
        found, at = [], self._first
        try:
            for _ in range(self._count):
                end = at + SIZE.size + SIZE.unpack_from(self._memory, at)[0]
                found.append(self._memory[at + SIZE.size : end].decode("utf-8"))
                at = end
        except UnicodeDecodeError:
            raise ValueError(f"text {len(found)} of field {self._key:.99} is not UTF-8") from None
        return found


@dataclass(frozen=True, slots=True)
class GgufFile:
    """fields: the header's values by key, as Python has them; arrays of numbers are views of the file, and
    arrays of texts are `Texts`."""

    fields: dict[str, Any]
    tensors: list[GgufTensor]

    def own(self, name: str) -> Any:
        """A field of its architecture; None where it has none."""
        return self.fields.get(f"{self.fields.get('general.architecture')}.{name}")

    def like(self, model: GgufFile) -> bool:
        """Tell whether its architecture and hidden size are the model's."""
        same = self.fields.get("general.architecture") == model.fields.get("general.architecture")
        return same and self.own("embedding_length") == model.own("embedding_length")

    def drafting(self, other: GgufFile) -> GgufFile:
        """The model with the layer for multi-token prediction of another file."""
        numbers = ((tensor, BLOCK.match(tensor.name)) for tensor in other.tensors)
        layer = [t for t, found in numbers if found and int(found[1]) >= self.own(BLOCKS)]
        keys = (f"{self.fields['general.architecture']}.{name}" for name in (BLOCKS, DRAFTS))
        fields = self.fields | {key: other.fields[key] for key in keys}
        return GgufFile(fields, [*self.tensors, *layer])

    @classmethod
    def read(cls, path: Path) -> GgufFile:
        """Map a file and read its header. ValueError in one sentence for one that is damaged."""
        memory = mapped(path)
        try:
            return _Reader(memory).file()
        except UnicodeDecodeError:
            raise ValueError(f"{path} is no sound GGUF file: a text is not UTF-8") from None
        except ValueError as error:
            raise ValueError(f"{path} is no sound GGUF file: {error}") from None


class _Reader:
    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._at = 0
        self._items = 0  # of the arrays so far

    def file(self) -> GgufFile:
        if self._numbers("4s", "its magic") != (MAGIC,):
            raise ValueError("it does not begin with GGUF")
        (version,) = self._numbers("I", "its version")
        if version not in VERSIONS:
            raise ValueError(f"version {version} is not 2 or 3")
        tensors, fields = self._numbers("QQ", "its counts")
        self._room(tensors, LEAST_TENSOR, MOST_TENSORS, "tensors")
        self._room(fields, LEAST_FIELD, MOST_FIELDS, "fields")
        found: dict[str, Any] = {}
        for _ in range(fields):
            key = self._text("a field's name", MOST_NAME)
            if key in found:
                raise ValueError(f"field {key:.99} is there twice")
            found[key] = self._value(key)
        facts = [self._facts() for _ in range(tensors)]
        alignment = found.get("general.alignment", 32)
        whole = isinstance(alignment, int) and not isinstance(alignment, bool)
        if not whole or not 1 <= alignment <= MOST_ALIGNMENT:
            limit = f"a whole number from 1 to {MOST_ALIGNMENT}"
            raise ValueError(f"general.alignment {shown(alignment)} must be {limit}")
        return GgufFile(found, list(self._tensors(facts, -(-self._at // alignment) * alignment)))

    def _facts(self) -> tuple[str, GGMLQuantizationType, tuple[int, ...], int]:
        """Name, type, shape and offset of a tensor."""
        name = self._text("a tensor's name", MOST_NAME)
        (axes,) = self._numbers("I", f"tensor {name:.99}")
        if not 1 <= axes <= MOST_AXES:
            raise ValueError(f"tensor {name:.99} has {axes} axes, not 1 to {MOST_AXES}")
        *sizes, kind, offset = self._numbers(f"{axes}QIQ", f"tensor {name:.99}")
        if kind not in iter(GGMLQuantizationType):
            raise ValueError(f"tensor {name:.99} is of the unknown type {kind}")
        return name, GGMLQuantizationType(kind), tuple(reversed(sizes)), offset

    def _tensors(
        self, facts: list[tuple[str, GGMLQuantizationType, tuple[int, ...], int]], base: int
    ) -> Iterator[GgufTensor]:
        taken = []
        for name, kind, shape, offset in facts:
            block, size = GGML_QUANT_SIZES[kind]
            if not prod(shape) or shape[-1] % block:
                raise ValueError(
                    f"tensor {name:.99} has shape {list(shape)}, whose last size must be a multiple of "
                    f"{block} and none 0"
                )
            row = shape[-1] // block * size
            first = base + offset
            last = first + prod(shape[:-1]) * row
            if last > len(self._memory):
                raise ValueError(
                    f"tensor {name:.99} ends at byte {last} of a file of {len(self._memory)} bytes"
                )
            taken.append((first, last, name))
            flat = np.frombuffer(self._memory, np.uint8, last - first, first)
            yield GgufTensor(name, kind, shape, flat.reshape(*shape[:-1], row))
        for (_, end, one), (begin, _, two) in pairwise(sorted(taken)):
            if begin < end:
                raise ValueError(f"tensors {one:.99} and {two:.99} overlap")
        if len({name for _, _, name in taken}) < len(taken):
            raise ValueError("two tensors have the same name")

    def _value(self, key: str) -> Any:
        (kind,) = self._numbers("I", f"field {key:.99}")
        if kind == TEXT:
            return self._text(f"field {key:.99}")
        if kind != ARRAY:
            return self._numbers(self._letter(kind, key), f"field {key:.99}")[0]
        kind, count = self._numbers("IQ", f"field {key:.99}")
        most = MOST_ITEMS - self._items
        if kind == TEXT:
            self._room(count, LEAST_TEXT, most, f"texts of field {key:.99}")
            self._items += count
            first = self._at
            for _ in range(count):
                (size,) = self._numbers("Q", f"field {key:.99}")
                self._skip(size, MOST_TEXT, f"field {key:.99}")
            return Texts(self._memory, key, first, count)
        dtype = np.dtype(f"<{self._letter(kind, key)}")
        self._room(count, dtype.itemsize, most, f"numbers of field {key:.99}")
        self._items += count
        begin = self._skip(count * dtype.itemsize, MOST_HEADER, f"field {key:.99}")
        return np.frombuffer(self._memory, dtype, count, begin) if count else np.empty(0, dtype)

    def _letter(self, kind: int, key: str) -> str:
        if kind not in NUMBERS:
            raise ValueError(f"field {key:.99} is of the unknown type {kind}")
        return NUMBERS[kind]

    def _text(self, what: str, most: int = MOST_TEXT) -> str:
        (size,) = self._numbers("Q", what)
        begin = self._skip(size, most, what)
        return self._memory[begin : begin + size].decode("utf-8")

    def _numbers(self, form: str, what: str) -> tuple[Any, ...]:
        begin = self._skip(struct.calcsize(f"<{form}"), MOST_HEADER, what)
        return struct.unpack_from(f"<{form}", self._memory, begin)

    def _skip(self, size: int, most: int, what: str) -> int:
        """Skip the next bytes, which count as read; return where they begin."""
        begin, self._at = self._at, self._at + size
        if self._at > len(self._memory):
            raise ValueError(f"{what} reaches past the end of the file")
        if size > most:
            raise ValueError(f"{what} has {size} bytes, and {most} are the most")
        if self._at > MOST_HEADER:
            raise ValueError(f"its header has more than {MOST_HEADER} bytes")
        return begin

    def _room(self, count: int, least: int, most: int, what: str) -> None:
        if count * least > len(self._memory) - self._at:
            raise ValueError(f"{count} {what} are more than there is room for in the file")
        if count > most:
            raise ValueError(f"{count} {what} are too many, {most} are the most")
