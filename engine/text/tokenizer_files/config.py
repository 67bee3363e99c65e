"""Settings of text that a checkpoint has beside its tokenizer: in JSON files, or the header of a GGUF file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastslow.engine.host.files import MOST_DIGITS, about, read_object, shown, text_part
from fastslow.engine.host.gguf_file import Texts, is_gguf, read_gguf

BEGINS = ("OpenPanguV2Tokenizer",)  # classes that add a bos where nothing is said
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
MOST_EOS = 1000  # ids that end an answer
LISTS = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True, slots=True)
class Settings:
    """The fields of a checkpoint folder's JSON files that concern text; absent ones are empty."""

    bos_token: str | None  # tokenizer_config.json, else special_tokens_map.json
    eos_token: str | None
    bos_id: int | None  # config.json bos_token_id
    eos_ids: frozenset[int]  # eos_token_id of generation_config.json and config.json
    add_bos: bool | None  # tokenizer_config.json add_bos_token; None: not said
    added: Mapping[str, int]  # pieces with ids of their own, beside the tokenizer's file
    special: frozenset[str]  # pieces that are marks, not text
    chat_template: object  # tokenizer_config.json chat_template, as it stands


def read_settings(folder: Path) -> Settings:
    """From the JSON files of a folder; each may be missing. ValueError for broken ones."""
    config = text_part(read_object(folder / "config.json"))
    generation = read_object(folder / "generation_config.json")
    ours = read_object(folder / "special_tokens_map.json") | {
        key: value
        for key, value in read_object(folder / "tokenizer_config.json").items()
        if value is not None
    }
    named = {key: piece for key in NAMED if (piece := _piece(ours.get(key))) is not None}
    lists = [ours[key] for key in LISTS if isinstance(ours.get(key), list)]
    special = {piece for items in lists for item in items if (piece := _piece(item)) is not None}
    added = _added(read_object(folder / "added_tokens.json").items(), "added_tokens.json")
    decoder = ours.get("added_tokens_decoder")
    for key, value in decoder.items() if isinstance(decoder, dict) else ():
        piece = _piece(value)
        if piece is not None:
            added |= _added([(piece, key)], "tokenizer_config.json: added_tokens_decoder")
            special |= {piece} if value.get("special") else set()
    bos_ids = _ids(config, "bos_token_id", "config.json")
    add_bos = ours.get("add_bos_token", True if ours.get("tokenizer_class") in BEGINS else None)
    return Settings(
        bos_token=named.get("bos_token"),
        eos_token=named.get("eos_token"),
        bos_id=min(bos_ids, default=None),
        eos_ids=_ids(generation, "eos_token_id", "generation_config.json")
        | _ids(config, "eos_token_id", "config.json"),
        add_bos=add_bos if isinstance(add_bos, bool) else None,
        added=added,
        special=frozenset(special | set(named.values())),
        chat_template=ours.get("chat_template"),
    )


def _piece(value: object) -> str | None:
    """A special token is written as its text or as an object with the text in `content`."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) and text else None


def read_data(path: Path, most: int = 2**28) -> bytes:
    """Read a file's bytes; ValueError if there are more than `most`, or they cannot be read."""
    try:
        if (size := path.stat().st_size) > most:
            raise ValueError(f"{path} has {size} bytes; at most {most} are read")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _added(pairs: Any, where: str) -> dict[str, int]:
    added = {}
    for piece, number in pairs:
        digits = isinstance(number, str) and number.isascii() and number.isdigit()
        if isinstance(number, bool) or not (digits or isinstance(number, int)):
            raise ValueError(f"{where} has an id that is not an integer")
        if isinstance(number, int) and number < 0:
            raise ValueError(f"{where} has a negative id")
        if isinstance(number, str) and len(number) > MOST_DIGITS:
            raise ValueError(f"{where} has an id of {len(number)} digits")
        added[str(piece)] = int(number)
    return added


def _ids(fields: Mapping[str, Any], key: str, where: str) -> frozenset[int]:
    value = fields.get(key)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(item, bool) or not isinstance(item, int) or item < 0 for item in values):
        raise ValueError(f"{where}: {key} must be an id or a list of ids, not {shown(value)}")
    if len(values) > MOST_EOS:
        raise ValueError(f"{where}: {key} has {len(values)} ids; at most {MOST_EOS} are taken")
    return frozenset(values)


CONTROL, USER_DEFINED = 3, 4  # token types: a mark; a text that is always one token
ENDS = frozenset(  # marks that end an answer in whatever vocabulary has them
    ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|return|>")
    + ("<|call|>", "<end_of_turn>", "<turn|>")
)
PREFIX = "tokenizer.ggml."
CHARACTERS = "gemma4"
MODELS = ("llama", "gpt2", CHARACTERS)
SHOWN = re.compile(r"<\|[^\s<>|]+\|?>|<[^\s<>|]+\|>")
# kinds whose texts begin with a bos unless the header denies it
LLAMA3 = ("llama-bpe", "llama3", "llama-v3", "lfm2")


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """Vocabulary of a GGUF header: what it says of its tokenizer.

    model: "llama" (SentencePiece), "gpt2" (byte-level BPE) or "gemma4" (BPE of characters). pre: how a text is split
    before merging, of a gpt2 one. types: of each token, see CONTROL."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    fields: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> GgufVocabulary:
        """ValueError in one sentence, without the path, for what does not fit."""
        fields = read_gguf(path).fields
        model = _text(fields, "model")
        if model not in MODELS:
            known = ", ".join(MODELS)
            raise ValueError(f"{PREFIX}model {shown(model)} is not one of the known {known}")
        tokens = texts_of(fields, "tokens")
        types = numbers_of(fields, "token_type", len(tokens), np.integer)
        pre = model if model == CHARACTERS else _text(fields, "pre") or "default"
        return cls(model, pre, tokens, types.tolist(), fields)

    @property
    def marks(self) -> frozenset[str]:
        """Tokens that are not text."""
        both = list(zip(self.tokens, self.types))
        found = {token for token, kind in both if kind == CONTROL}
        if self.model == CHARACTERS:  # files show some marks, so that others find calls by them
            found |= {t for t, kind in both if kind == USER_DEFINED and SHOWN.fullmatch(t)}
        return frozenset(found)

    @property
    def add_bos(self) -> bool:
        usual = self.model in ("llama", CHARACTERS) or self.pre in (*LLAMA3, "tekken")
        return self.flag("add_bos_token", usual)

    def flag(self, name: str, default: bool) -> bool:
        value = self.fields.get(f"{PREFIX}{name}", default)
        if not isinstance(value, bool):
            raise ValueError(f"{PREFIX}{name} {shown(value)} must be true or false")
        return value

    def id_of(self, name: str) -> int | None:
        number = self.fields.get(f"{PREFIX}{name}")
        if number is None:
            return None
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ValueError(f"{PREFIX}{name} {shown(number)} must be a whole number of at least 0")
        if number >= len(self.tokens):
            raise ValueError(f"{PREFIX}{name} {number} must be at most {len(self.tokens) - 1}")
        return number

    def settings(self) -> Settings:
        """As the JSON files of a folder would say them."""
        bos, eos = self.id_of("bos_token_id"), self.id_of("eos_token_id")
        named = (eos, self.id_of("eot_token_id"), self.id_of("eom_token_id"))
        ends = {number for number in named if number is not None}
        marks = self.marks
        ends |= {n for n, token in enumerate(self.tokens) if token in ENDS and token in marks}
        return Settings(
            bos_token=None if bos is None else self.tokens[bos],
            eos_token=None if eos is None else self.tokens[eos],
            bos_id=bos,
            eos_ids=frozenset(ends),
            add_bos=self.add_bos,
            added={},
            special=marks,
            chat_template=self.fields.get("tokenizer.chat_template"),
        )


def settings_of(path: Path) -> Settings:
    """Read what a checkpoint folder's JSON files, or a GGUF file's header, say of text."""
    if not is_gguf(path):
        return read_settings(path)
    with about(path):
        return GgufVocabulary.read(path).settings()


def texts_of(fields: Mapping[str, Any], name: str) -> list[str]:
    """An array of texts that must be there."""
    found = fields.get(f"{PREFIX}{name}")
    if not isinstance(found, Texts) or not len(found):
        raise ValueError(f"{PREFIX}{name} {shown(found)} must be a list of texts")
    return found.read()


def numbers_of(fields: Mapping[str, Any], name: str, count: int, kind: Any) -> NDArray[Any]:
    """An array of `count` numbers that must be there."""
    found = fields.get(f"{PREFIX}{name}")
    if (
        not isinstance(found, np.ndarray)
        or len(found) != count
        or not np.issubdtype(found.dtype, kind)
    ):
        raise ValueError(f"{PREFIX}{name} {shown(found)} must be a list of {count} numbers")
    return found


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(f"{PREFIX}{name}")
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{PREFIX}{name} {shown(value)} must be a text")
    return value
