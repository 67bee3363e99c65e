"""Log-probabilities in OpenAI's two shapes, and the bytes of the tokens in them."""

from __future__ import annotations

import math
from codecs import getincrementaldecoder
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastslow.serve.api.engine import Engine

NEVER = -9999.0  # OpenAI's number for what cannot be: JSON has no infinity

Places = Sequence[Mapping[int, float] | None]


class TokenTable:
    """Remembers what the engine says of each token; never more than its vocabulary."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[int, tuple[bytes, bool]] = {}

    async def learn(self, tokens: Iterable[int]) -> None:
        """Ask the engine for those that are not known yet."""
        unknown = list({token for token in tokens if token not in self._known})
        if unknown:
            self._known.update(zip(unknown, await self._engine.token_bytes(unknown)))

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes of a token that was learned."""
        return self._known[token][0]

    def shows(self, token: int) -> bool:
        """Tell whether answers show such a token."""
        return self._known[token][1]

    def text_of(self, token: int) -> str:
        """The same as text; bytes that are no whole character as U+FFFD."""
        return self._known[token][0].decode("utf-8", "replace")


def tokens_in(places: Places | None, ids: Iterable[int] = ()) -> list[int]:
    """Every token that log-probabilities name."""
    return [*ids, *(token for place in places or () for token in place or ())]


def chat_logprobs(
    ids: Sequence[int], places: Places, top: int, table: TokenTable
) -> list[dict[str, Any]]:
    """Of each token, with the `top` likeliest beside it."""

    def entry(token: int, place: Mapping[int, float]) -> dict[str, Any]:
        probability = _finite(place.get(token, -math.inf))
        data = list(table.bytes_of(token))
        return {"token": table.text_of(token), "logprob": probability, "bytes": data}

    return [
        {**entry(t, p or {}), "top_logprobs": [entry(o, p or {}) for o in _likeliest(p, top)]}
        for t, p in zip(ids, places)
    ]


class TextLogprobsWriter:
    """The older shape. Offsets count whole characters from the beginning of the text, across calls. table: of the
    tokens' bytes. top: how many likeliest tokens stand beside each token."""

    def __init__(self, table: TokenTable, top: int) -> None:
        self._table, self._top = table, top
        self._decoder = getincrementaldecoder("utf-8")("replace")  # as answers are decoded
        self._characters = 0

    def write(self, ids: Sequence[int], places: Places) -> dict[str, Any]:
        """Of further tokens."""
        names = ("text_offset", "token_logprobs", "tokens", "top_logprobs")
        made: dict[str, list[Any]] = {name: [] for name in names}
        for token, place in zip(ids, places):
            made["text_offset"].append(self._characters)
            made["tokens"].append(self._name(token))
            made["token_logprobs"].append(None if place is None else _finite(place[token]))
            likeliest = None
            if place is not None:
                every = dict.fromkeys([*_likeliest(place, self._top), token])
                likeliest = {self._name(t): _finite(place[t]) for t in every}
            made["top_logprobs"].append(likeliest)
            if self._table.shows(token):
                self._characters += len(self._decoder.decode(self._table.bytes_of(token)))
        return made

    def _name(self, token: int) -> str:
        data = self._table.bytes_of(token)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:  # OpenAI's name for a part of a character
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _likeliest(place: Mapping[int, float] | None, top: int) -> list[int]:
    """The likeliest tokens, at most `top`; of equal ones the smaller id comes first."""
    if not place or not top:
        return []
    return sorted(place, key=lambda token: (-place[token], token))[:top]


def _finite(value: float) -> float:
    """A log-probability as JSON can have it."""
    return value if math.isfinite(value) else NEVER
