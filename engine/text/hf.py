"""tokenizer.json, read by the `tokenizers` library."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers

from fastslow.engine.host.files import read_object
from fastslow.engine.host.machine import give_back
from fastslow.engine.text.settings import Settings
from fastslow.engine.text.vocabulary import (
    PieceDecoder,
    Tokenizer,
    check_unicode,
    is_mark,
    is_unicode,
    stop_ids,
)

LONG = 4096  # characters: a millisecond of work


class HfTokenizer(Tokenizer):
    """A `tokenizers` model of any kind whose decoder joins bytes (see PieceDecoder)."""

    def __init__(self, path: Path, settings: Settings) -> None:
        """Raises ValueError if the file at `path` is not a usable tokenizer.json."""
        try:
            library = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
            read_object(path)  # says it better where it is no JSON
            raise ValueError(f"{path} is not a tokenizer: {error}") from None
        give_back()  # twice what is kept was taken to read the file
        # May be left over in the file; they would cut a prompt silently.
        library.no_truncation()
        library.no_padding()
        # Asked of the library: another parse of the whole file, merges and all, would take 27 MB.
        decode = PieceDecoder(
            json.loads(library.decoder.__getstate__()) if library.decoder else None
        )
        ids = library.get_vocab(with_added_tokens=True)
        added = library.get_added_tokens_decoder()
        data = {number: decode(piece) for piece, number in ids.items()}
        data |= {number: token.content.encode() for number, token in added.items()}
        special = {number for number, token in added.items() if token.special}
        special |= {ids[piece] for piece in ids if piece in settings.special or is_mark(piece)}
        super().__init__(data, special, decode.leading_spaces)
        self._library = library
        self._add_bos = settings.add_bos
        named = ids.get(settings.bos_token) if settings.bos_token is not None else None
        self.bos_id = settings.bos_id if named is None else named
        self.eos_ids = stop_ids(self, settings)

    def vocab(self) -> dict[str, int]:
        found: dict[str, int] = self._library.get_vocab(with_added_tokens=True)
        return found

    def token_id(self, piece: str) -> int | None:
        return self._library.token_to_id(piece) if is_unicode(piece) else None

    def piece(self, token_id: int) -> str | None:
        return self._library.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """See `Tokenizer.encode`. tokenizer_config.json's `add_bos_token`, where it is given,
        decides; else the file's own post-processor does."""
        check_unicode(text)
        added = add_special and self._add_bos is not False
        added = added and not self.begins_with(text, self.bos_id)
        if len(text) < LONG:
            ids: list[int] = self._library.encode(text, add_special_tokens=added).ids
        else:  # unlike `encode` it lets other threads run meanwhile
            ids = self._library.encode_batch([text], add_special_tokens=added)[0].ids
        if added and self._add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            return [self.bos_id, *ids]
        return ids
