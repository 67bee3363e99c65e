"""One request's text in the tokens of another vocabulary, kept up as it grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastslow.draft.model.spelling import Speller, Spelling, inside_character, whole

LONGEST = 96  # tokens of the end that are encoded each time
AGAIN = 16  # of which so many stay open when the others are settled


class Follower:
    """The draft model's tokens for a text of the target's.

    The text is encoded as it would be for the draft model, not token by token, but only its end
    again and again: what stands before is settled.

    Args:
        target: whose tokens come in.
        own: whose tokens come out.
        marks: special tokens of the target -> the draft model's; others are left out.
    """

    def __init__(self, target: Spelling, own: Speller, marks: Mapping[int, int]) -> None:
        self._target = target
        self._own = own
        self._marks = marks
        self._settled: list[int] = []
        self._end = b""  # text behind what is settled
        self._cut = False  # whether it goes on with what is settled, so no space goes before it
        self._silent = True  # no text was read yet
        self._seen = 0  # tokens of the target that were read
        self.begun = b""  # a character at the end that is not whole, and so not in the tokens

    @property
    def settled(self) -> int:
        """How many of the tokens will never change."""
        return len(self._settled)

    def follow(self, tokens: Sequence[int]) -> list[int]:
        """All of the text, which begins as the last one did, in the draft model's tokens."""
        for place in range(self._seen, len(tokens)):
            self._read(tokens[place], first=place == 0)
        self._seen = len(tokens)
        text, self.begun = whole(self._end)
        ids = self._encode(text)
        if len(ids) > LONGEST:
            ids = self._settle(ids, text)
        return [*self._settled, *ids]

    def _read(self, token: int, first: bool) -> None:
        if first:
            self._settled = self._own.start()
        if token not in self._target.special_ids:
            data = self._target.token_bytes(token)
            if self._silent and self._target.leading_spaces:
                data = data.removeprefix(b" ")
            self._end += data
            self._silent = False
            return
        if first and self._settled and token == self._target.bos_id:
            return  # the draft model's own beginning stands for it
        self._settled += self._encode(whole(self._end)[0])
        self._end, self._cut = b"", False
        if (mark := self._marks.get(token)) is not None:
            self._settled.append(mark)

    def _encode(self, text: str) -> list[int]:
        if not text:
            return []
        found = self._own.inside(text) if self._cut else None
        return self._own.tokenizer.encode(text, add_special=False) if found is None else found

    def _settle(self, ids: list[int], text: str) -> list[int]:
        """Settle all but a few, up to a place between two characters.

        A tokenizer that changes the text's bytes gives no place to cut it.
        """
        data = text.encode()
        for first in range(len(ids) - AGAIN, 0, -1):
            kept = b"".join(map(self._own.tokenizer.token_bytes, ids[first:]))
            if not data.endswith(kept):
                return ids
            if not inside_character(kept):
                self._settled += ids[:first]
                self._end, self._cut = kept + self.begun, True
                return ids[first:]
        return ids
