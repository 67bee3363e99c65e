"""The `decoder` of a tokenizer.json: which bytes a piece stands for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

SPACE = "\u2581"  # how SentencePiece writes a space
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class PieceDecoder:
    """Pieces to bytes, one at a time: a text is its pieces' bytes joined.

    Known are byte-level BPE (ByteLevel; GPT-2's byte alphabet) and SentencePiece's forms (Replace,
    ByteFallback, Fuse, Strip, Metaspace). Raises ValueError for any other decoder: where a piece's
    text depends on its neighbours, it cannot be streamed.
    """

    def __init__(self, spec: Mapping[str, Any] | None) -> None:
        self.leading_spaces = 0
        self._alphabet: dict[str, int] | None = None
        self._byte_pieces = False
        self._replaced: list[tuple[str, str]] = []
        steps = list(_steps(spec))
        for step in steps:
            self._read(step)
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
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
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
    """GPT-2's printable character for every byte: printable Latin-1 stands for itself, the other
    bytes are numbered from U+0100 on."""
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
