"""Pieces, ids and the bytes that each id stands for: what every kind of tokenizer shares; and ids to text as they come,
never half a character, and never half of what is searched for."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from array import array
from codecs import utf_8_decode
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, AnyStr

from fastslow.engine.text.tokenizer_files.config import Settings

SPACE = "\u2581"  # how SentencePiece writes a space
MOST_IDS = 2**22  # sixteen times the largest vocabulary so far
MOST_STEPS = 100  # of a decoder or another part of tokenizer.json
GROWTH = 64  # characters that such a part may make of one; the library keeps 17 bytes for each
MOST_MARKS = 40_000  # special and added tokens: some models have 30,000 of sounds or images
LONGEST_MARK = 1000  # bytes of such a token
ANCHORS = ("", "\n", "a")  # in front of a text, so that no tokenizer adds a first space
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class PieceDecoder:
    """Pieces to bytes, one at a time: a text is its pieces' bytes joined.

    Known are byte-level BPE (GPT-2's byte alphabet) and SentencePiece's forms. ValueError for any other
    decoder: where a piece's text depends on its neighbours, it cannot be streamed."""

    def __init__(self, spec: Mapping[str, Any] | None) -> None:
        self.leading_spaces = 0
        self._alphabet: dict[str, int] | None = None
        self._byte_pieces = False
        self._replaced: list[tuple[str, str]] = []
        steps = list(_steps(spec))
        for step in steps:
            self._read(step)
        growth = prod(max(1, -(-len(new) // len(old))) for old, new in self._replaced[:MOST_STEPS])
        if len(steps) > MOST_STEPS or growth > GROWTH:
            raise ValueError(
                f"tokenizer.json: decoder makes pieces {growth} times as long in {len(steps)} steps; "
                f"at most {GROWTH} times and {MOST_STEPS} steps are taken"
            )
        if not steps:
            raise ValueError("tokenizer.json: decoder is missing")

    def __call__(self, piece: str) -> bytes:
        """The bytes of an ordinary piece (added tokens stand for their own text)."""
        if self._alphabet is not None:
            try:
                return bytes(map(self._alphabet.__getitem__, piece))
            except KeyError:
                return piece.encode()
        if self._byte_pieces and (match := BYTE_PIECE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        for old, new in self._replaced:
            piece = piece.replace(old, new)
        return piece.encode()

    def _read(self, step: Mapping[str, Any]) -> None:
        match step:
            case {"type": "ByteLevel"}:
                self._alphabet = byte_alphabet()
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if (
                old and len(new) < 16
            ):
                self._replaced.append((old, new))
            case {"type": "ByteFallback"}:
                self._byte_pieces = True
            case {"type": "Fuse"}:
                pass
            case {"type": "Strip", "content": " ", "start": int(start), "stop": 0}:
                self.leading_spaces = start
            case {"type": "Metaspace", "replacement": str(mark)}:
                self._replaced.append((mark, " "))
                prefixed = step.get("prepend_scheme", "always") != "never"
                self.leading_spaces = int(prefixed and step.get("add_prefix_space", True))
            case _:
                raise ValueError(
                    f"tokenizer.json: decoder {step.get('type')!r} is not supported; "
                    "byte-level and SentencePiece decoders are"
                )


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for every byte."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + i): byte for i, byte in enumerate(hidden)
    }


def _steps(spec: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if not isinstance(spec, dict):
        return
    if spec.get("type") != "Sequence":
        yield spec
    for inner in spec.get("decoders") or ():
        yield from _steps(inner)


class Tokenizer(ABC):
    """Text to ids and back: decoding is joining the bytes of the ids and reading them as UTF-8.

    Pieces stay in the library that reads text: a second table of them took more memory than the library.

    Attributes:
        vocab_size: number of ids; a model's logits may have more columns.
        own_size: the same without tokens that were added to the vocabulary.
        longest: bytes of the longest token.
        bos_id: begins a text; None: the model has no such token.
        eos_ids: each of them ends an answer.
        special_ids: marks, not text; `decode` leaves them out by default.
        leading_spaces: spaces at the start of a text that `decode` drops (SentencePiece's dummy prefix).
    """

    bos_id: int | None
    eos_ids: frozenset[int]

    def __init__(
        self,
        data: Mapping[int, bytes],
        special_ids: Collection[int],
        leading_spaces: int,
        added: Collection[int] = (),
    ) -> None:
        """`data`: id -> bytes, for every id; `added`: ids of added tokens. ValueError for absurd ids."""
        self.special_ids = frozenset(special_ids)
        self.leading_spaces = leading_spaces
        self.vocab_size = max(data, default=-1) + 1
        if self.vocab_size > MOST_IDS:
            raise ValueError(f"a token has id {self.vocab_size - 1}; ids are below {MOST_IDS}")
        marks = self.special_ids.union(added)
        if len(marks) > MOST_MARKS:
            raise ValueError(
                f"the tokenizer has {len(marks)} special and added tokens; at most {MOST_MARKS} are taken"
            )
        long = next((number for number in marks if len(data.get(number, b"")) > LONGEST_MARK), None)
        if long is not None:
            raise ValueError(f"added token {long} is longer than {LONGEST_MARK} bytes")
        self.own_size = max((number for number in data if number not in added), default=-1) + 1
        each = [data.get(number, b"") for number in range(self.vocab_size)]
        self.longest = max(map(len, each), default=0)
        self._bytes = b"".join(each)
        self._bounds = array("Q", [0])  # id n owns bytes bounds[n] : bounds[n + 1]
        for some in each:
            self._bounds.append(self._bounds[-1] + len(some))

    @abstractmethod
    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Ids of `text`. Special tokens written out in it are read as such.

        `add_special`: also add what the tokenizer's own files put around a text, in most models a bos in front,
        which is not doubled. ValueError if `text` is not valid Unicode (a lone surrogate)."""

    def encode_parts(self, parts: Sequence[str], add_special: bool = True) -> list[int]:
        """Ids of a text that is given in parts, not one empty: no token spans two of them."""
        first, *others = parts
        ids = self.encode(first, add_special)
        if not others:
            return ids
        bare = self.encode(first, add_special=False)
        before = max(i for i in range(len(ids) - len(bare) + 1) if ids[i : i + len(bare)] == bare)
        middle = [token for part in others for token in self._encode_on(part)]
        return [*ids[: before + len(bare)], *middle, *ids[before + len(bare) :]]

    def _encode_on(self, text: str) -> list[int]:
        """Ids of a text that continues another: without the tokenizer's own first space."""
        for anchor in ANCHORS:
            ids = self.encode(anchor + text, add_special=False)
            for skipped in range(4):
                data = [self.token_bytes(token) for token in ids[: skipped + 4]]
                before, after = b"".join(data[:skipped]), b"".join(data[skipped:])
                if before.lstrip(b" ") == anchor.encode() and after.startswith(text[0].encode()):
                    return ids[skipped:]
        return self.encode(text, add_special=False)

    def encode_exactly(self, text: str) -> list[int] | None:
        """Ids that add exactly this to a text before them; None: it has none."""
        data = text.encode()
        for anchor in ANCHORS:
            ids = self.encode(anchor + text, add_special=False)
            first, size = len(ids), 0
            while first and size < len(data):
                first -= 1
                size += len(self.token_bytes(ids[first]))
            if b"".join(map(self.token_bytes, ids[first:])) == data:
                return ids[first:]
        return None

    def as_matched(self, text: str) -> str:
        """A text as special tokens are looked for in it, where that is not as it stands."""
        return text

    @abstractmethod
    def vocab(self) -> dict[str, int]:
        """A new dict of every piece, special and added ones too, to its id."""

    @abstractmethod
    def token_id(self, piece: str) -> int | None:
        """The id of exactly this piece, None when there is none (never the unknown token's id)."""

    @abstractmethod
    def piece(self, token_id: int) -> str | None:
        """The piece with this id, None when there is none."""

    def begins_with(self, text: str, token_id: int | None) -> bool:
        """Tell whether `text` begins with the piece of this id written out."""
        piece = None if token_id is None else self.piece(token_id)
        return piece is not None and text.startswith(piece)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one id adds to a text: UTF-8, possibly a part of a character; b"" for an unknown id."""
        if not 0 <= token_id < self.vocab_size:
            return b""
        return self._bytes[self._bounds[token_id] : self._bounds[token_id + 1]]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD, one for each maximal part of a character."""
        hidden = self.special_ids if skip_special else frozenset()
        data = b"".join(self.token_bytes(token) for token in ids if token not in hidden)
        text = data.decode("utf-8", "replace")
        prefix = len(text[: self.leading_spaces]) - len(text[: self.leading_spaces].lstrip(" "))
        return text[prefix:]


def hold_back(text: str, stops: Iterable[str]) -> int:
    """Number of characters at the end of `text` that may be the beginning of one of `stops`.

    A stream may emit the text before: no stop string begins inside it, if `text` holds none already."""
    return max((len(begun(text, stop)) for stop in stops), default=0)


def begun(said: AnyStr, tag: AnyStr) -> AnyStr:
    """The longest end of a text that begins the tag."""
    sizes = range(min(len(tag) - 1, len(said)), 0, -1)
    return next((tag[:k] for k in sizes if said.endswith(tag[:k])), tag[:0])


class Detokenizer:
    """An incremental `Tokenizer.decode`.

    However the ids are split over pushes, what `push` and at last `finish` return joins to
    `tokenizer.decode(ids, skip_special)`. Bytes that may still become a character are held back; bytes that no
    longer can are U+FFFD at once. The state is at most three bytes and a count."""

    __slots__ = ("_hidden", "_leading", "_pending", "_tokenizer")

    def __init__(
        self, tokenizer: Tokenizer, keep: frozenset[int] = frozenset(), after: Sequence[int] = ()
    ) -> None:
        """`keep`: special ids that are shown all the same. `after`: ids before the text, which are not emitted;
        with them a SentencePiece text keeps the space between itself and them."""
        self._tokenizer = tokenizer
        self._hidden = tokenizer.special_ids - keep
        self._leading = tokenizer.leading_spaces
        self._pending = b""
        self.push(after)

    def push(self, ids: Sequence[int]) -> str:
        """Take further ids; returns the text that they make certain, often ""."""
        token_bytes, hidden = self._tokenizer.token_bytes, self._hidden
        fresh = b"".join([token_bytes(token) for token in ids if token not in hidden])
        text, used = utf_8_decode(pending := self._pending + fresh, "replace", False)
        self._pending = pending[used:]
        return self._emit(text) if self._leading else text

    def finish(self) -> str:
        """The text still held back: a character that was never completed, as U+FFFD, or ""."""
        text, self._pending = self._pending.decode("utf-8", "replace"), b""
        return self._emit(text)

    def _emit(self, text: str) -> str:
        if self._leading and text:
            bare = text.lstrip(" ")
            dropped = min(len(text) - len(bare), self._leading)
            self._leading = self._leading - dropped if dropped == len(text) else 0
            text = text[dropped:]
        return text


def check_unicode(text: str) -> None:
    """Raise ValueError if `text` holds half a surrogate pair, which has no UTF-8 form."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text has a lone surrogate at position {error.start}, which is not a character"
        ) from None


def is_unicode(text: str) -> bool:
    """Tell whether the libraries can be asked about a text: no lone surrogate in it."""
    try:
        check_unicode(text)
    except ValueError:
        return False
    return True


# openPangu keeps its marks as ordinary user-defined pieces that no file lists as special.
TURN_OPEN, TURN_CLOSE = "[unused9]", "[unused10]"
_MARK = re.compile(r"\[unused\d+\]")


def is_mark(piece: str) -> bool:
    """Tell whether the piece is one of openPangu's reserved `[unusedN]`."""
    return _MARK.fullmatch(piece) is not None


def is_pangu(vocabulary: Tokenizer) -> bool:
    """Tell whether the vocabulary has openPangu's turn marks."""
    return None not in (vocabulary.token_id(TURN_OPEN), vocabulary.token_id(TURN_CLOSE))


def stop_ids(vocabulary: Tokenizer, settings: Settings) -> frozenset[int]:
    """Ids that end an answer: of the configuration files, and openPangu's end of a turn."""
    pieces = [settings.eos_token, TURN_CLOSE if is_pangu(vocabulary) else None]
    found = (vocabulary.token_id(piece) for piece in pieces if piece is not None)
    return settings.eos_ids | {number for number in found if number is not None}
