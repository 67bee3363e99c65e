"""Vocabularies of plain pieces, for drafting across them, and models that speak each other's."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from checkpoints import write
from safetensors.torch import load_file

from fastslow.engine.text.vocabulary import Tokenizer


class Pieces(Tokenizer):
    """A tokenizer that takes the longest piece that fits; pieces in `special` are marks."""

    def __init__(
        self,
        pieces: Sequence[str],
        special: Sequence[str] = (),
        bos: str | None = None,
        eos: str | None = None,
        adds_bos: bool = False,
    ) -> None:
        self.pieces = list(pieces)
        data = {number: piece.encode() for number, piece in enumerate(pieces)}
        super().__init__(data, [self.pieces.index(piece) for piece in special], 0)
        self.bos_id = None if bos is None else self.pieces.index(bos)
        self.eos_ids = frozenset() if eos is None else frozenset([self.pieces.index(eos)])
        self._adds_bos = adds_bos
        self._order = sorted(range(self.vocab_size), key=lambda i: -len(self.pieces[i]))

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        found = [self.bos_id] if add_special and self._adds_bos and self.bos_id is not None else []
        while text:
            number = next((i for i in self._order if text.startswith(self.pieces[i])), None)
            if number is None:
                text = text[1:]
                continue
            found.append(number)
            text = text[len(self.pieces[number]) :]
        return found

    def vocab(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.pieces)}

    def token_id(self, piece: str) -> int | None:
        return self.pieces.index(piece) if piece in self.pieces else None

    def piece(self, token_id: int) -> str | None:
        return self.pieces[token_id] if token_id < self.vocab_size else None


def letters(count: int) -> list[str]:
    """So many pieces of one character, three bytes each."""
    return [chr(0x4E00 + i) for i in range(count)]


def renumbered(folder: Path, whole: Path, order: Sequence[int]) -> Path:
    """The checkpoint in `whole`, whose token order[i] is token i in this one."""
    config = json.loads((whole / "config.json").read_text("utf-8")) | {"vocab_size": len(order)}
    table = load_file(whole / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in table:
            table[name] = table[name][torch.tensor(order)].contiguous()
    return write(folder, config, table)
