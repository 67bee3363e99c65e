"""Token ids to text as they come, never half a character, and never half of what is searched for."""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Iterable, Sequence

from fastslow.engine.text.vocabulary import Tokenizer


def hold_back(text: str, stops: Iterable[str]) -> int:
    """Number of characters at the end of `text` that may be the beginning of one of `stops`.

    A stream may emit the text before: no stop string begins inside it, if `text` holds none already."""
    return max((_overlap(text, stop) for stop in stops), default=0)


def _overlap(text: str, stop: str) -> int:
    longest = min(len(text), len(stop) - 1)
    lengths = range(longest, 0, -1)
    return next((k for k in lengths if text.endswith(stop[:k])), 0)


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
        self._pending += b"".join(token_bytes(token) for token in ids if token not in hidden)
        text, used = utf_8_decode(self._pending, "replace", False)
        self._pending = self._pending[used:]
        return self._emit(text)

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
