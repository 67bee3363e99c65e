"""A model's thinking tags as bytes and tokens: how to read them, and how to write an ending."""

from __future__ import annotations

from collections.abc import Iterator

from fastslow.engine.text.thought import ThoughtTags
from fastslow.engine.text.tokenizer import Tokenizer

ANCHORS = (
    "",
    "\n",
    "a",
)  # written in front of a text, so that no tokenizer adds a space of its own


class TagTokens:
    """The tags in one tokenizer.

    A tag is found by its bytes, as a reader of the text finds it, however it is cut into tokens.

    Args:
        tokenizer: of the model.
        tags: its thinking tags.

    Attributes:
        open, close: UTF-8; an empty `open` is never found (see `ThoughtTags`).
        close_ids: tokens that write the closing tag.

    Raises:
        ValueError: the closing tag cannot be written in these tokens.
    """

    def __init__(self, tokenizer: Tokenizer, tags: ThoughtTags) -> None:
        self._tokenizer = tokenizer
        self._tags = tags
        self._closings: dict[str, tuple[int, ...]] = {}
        self._hidden = tokenizer.special_ids - tags.ids(tokenizer)
        self.open, self.close = tags.open.encode(), tags.close.encode()
        self.close_ids = self.closing("")

    def spell(self, token: int) -> bytes:
        """The bytes of a token in the answer's text; marks that the text does not show have none."""
        return b"" if token in self._hidden else self._tokenizer.token_bytes(token)

    def closing(self, phrase: str) -> tuple[int, ...]:
        """Tokens that end a thought: the phrase and the closing tag, which it may hold already.

        Raises:
            ValueError: these tokens cannot write it.
        """
        if phrase not in self._closings:
            self._closings[phrase] = self._written(phrase)
        return self._closings[phrase]

    def _written(self, phrase: str) -> tuple[int, ...]:
        single = self._tokenizer.token_id(self._tags.close)
        if self._tags.close in phrase:
            ids = self._encode(phrase)
        elif single is None:
            ids = self._encode(phrase + self._tags.close)
        else:
            ids = (*self._encode(phrase), single)
        if self.close not in b"".join(map(self.spell, ids)):
            text = phrase + self._tags.close
            raise ValueError(f"closing={text!r} cannot be written in this model's tokens")
        return ids

    def _encode(self, text: str) -> tuple[int, ...]:
        """The tokens of a text that goes on from another: without a tokenizer's own first space."""
        wanted = text.encode()
        for anchor in ANCHORS if text else ():
            ids = self._tokenizer.encode(anchor + text, add_special=False)
            for rest in _ends(ids):
                if b"".join(map(self.spell, rest)) == wanted:
                    return tuple(rest)
        return tuple(self._tokenizer.encode(text, add_special=False)) if text else ()


def _ends(ids: list[int]) -> Iterator[list[int]]:
    return (ids[first:] for first in range(len(ids)))
