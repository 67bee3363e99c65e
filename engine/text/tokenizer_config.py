"""What the JSON files beside a tokenizer say: special tokens, added pieces, the chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastslow.engine.host.files import MOST_DIGITS, read_object, shown

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
    """Read config.json, generation_config.json, tokenizer_config.json, special_tokens_map.json and
    added_tokens.json; each may be missing. Raises ValueError for broken ones.
    """
    config = read_object(folder / "config.json")
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
    add_bos = ours.get("add_bos_token")
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
    """What a file holds; ValueError if it is more than so many bytes, or cannot be read."""
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
