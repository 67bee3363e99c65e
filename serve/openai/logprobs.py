"""Log-probabilities in OpenAI's two shapes."""

from __future__ import annotations

import math
from codecs import getincrementaldecoder, utf_8_decode
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from fastslow.serve.http.token_table import TokenTable

NEVER = -9999.0  # OpenAI's number for what cannot be: JSON has no infinity

Places = Sequence[Mapping[int, float] | None]


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """One token of an answer: those of its thought and its end token, too."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob] | None
    refusal: None = None


class TextLogprobs(BaseModel):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


def tokens_in(places: Places | None, ids: Iterable[int] = ()) -> list[int]:
    """Every token that log-probabilities name."""
    return [*ids, *(token for place in places or () for token in place or ())]


def chat_logprobs(
    ids: Sequence[int], places: Places, top: int, table: TokenTable
) -> list[dict[str, Any]]:
    """Of each token, with the `top` likeliest beside it."""
    return [
        {
            **_entry(token, place or {}, table),
            "top_logprobs": [_entry(other, place or {}, table) for other in _likeliest(place, top)],
        }
        for token, place in zip(ids, places)
    ]


class TextLogprobsWriter:
    """The older shape. Offsets count characters from the beginning of the text, across calls.

    Args:
        table: of the tokens' bytes.
        top: how many likeliest tokens are told with each token.
    """

    def __init__(self, table: TokenTable, top: int) -> None:
        self._table, self._top = table, top
        self._decoder = getincrementaldecoder("utf-8")("replace")  # as answers are decoded
        self._characters = 0

    def write(self, ids: Sequence[int], places: Places) -> dict[str, Any]:
        """Of further tokens."""
        made: dict[str, Any] = {
            "text_offset": [],
            "token_logprobs": [],
            "tokens": [],
            "top_logprobs": [],
        }
        for token, place in zip(ids, places):
            likeliest = {} if place is None else {t: place[t] for t in _likeliest(place, self._top)}
            if place is not None:
                likeliest.setdefault(token, place[token])
            made["text_offset"].append(self._start(token))
            made["tokens"].append(self._name(token))
            made["token_logprobs"].append(None if place is None else finite(place[token]))
            named = {self._name(t): finite(p) for t, p in likeliest.items()}
            made["top_logprobs"].append(None if place is None else named)
            self._move(token)
        return made

    def _start(self, token: int) -> int:
        """Where a token begins: behind bytes that no longer become a character, if it does not complete them."""
        pending, data = self._decoder.getstate()[0], self._table.bytes_of(token)
        try:
            utf_8_decode(pending + data[:1], "strict", False)
        except UnicodeDecodeError:
            return self._characters + len(pending.decode("utf-8", "replace"))
        return self._characters

    def _move(self, token: int) -> None:
        if self._table.shows(token):
            self._characters += len(self._decoder.decode(self._table.bytes_of(token)))

    def _name(self, token: int) -> str:
        data = self._table.bytes_of(token)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:  # OpenAI's name for a part of a character
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _entry(token: int, place: Mapping[int, float], table: TokenTable) -> dict[str, Any]:
    data = table.bytes_of(token)
    probability = finite(place.get(token, -math.inf))
    return {"token": table.text_of(token), "logprob": probability, "bytes": list(data)}


def _likeliest(place: Mapping[int, float] | None, top: int) -> list[int]:
    """The likeliest tokens, at most so many; of equal ones the smaller id comes first."""
    if not place or not top:
        return []
    return sorted(place, key=lambda token: (-place[token], token))[:top]


def finite(value: float) -> float:
    """A log-probability as JSON can have it."""
    return value if math.isfinite(value) else NEVER
