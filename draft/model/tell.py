"""What the draft model said, told again in the target's tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastslow.draft.model.spelling import Speller, Spelling, marks, missing, whole


class Teller:
    """Tokens of the draft model told in the target's, through their text.

    Args:
        own: the draft model's tokenizer.
        target: the target's.
    """

    def __init__(self, own: Spelling, target: Speller) -> None:
        self._own = own
        self._target = target
        self._marks: Mapping[int, int] = marks(own, target.tokenizer)

    def tell(self, drafted: Sequence[int], begun: bytes) -> tuple[list[int], bool]:
        """The target's tokens for what was drafted, and whether more could follow.

        begun: the first bytes of a character that the target has half written. What the draft says
        must go on with it, and is of no use if it does not. The end of the draft that is not a
        whole character is left out.
        """
        told: list[int] = []
        said = b""
        for token in drafted:
            if token not in self._own.special_ids:
                said += self._own.token_bytes(token)
                continue
            spelt = self._spell(said, begun)
            mark = self._marks.get(token)
            if spelt is None or mark is None:
                return told + (spelt or []), False
            told += [*spelt, mark]
            said, begun = b"", b""
            if mark in self._target.tokenizer.eos_ids:
                return told, False
        spelt = self._spell(said, begun)
        return told + (spelt or []), spelt is not None

    def _spell(self, said: bytes, begun: bytes) -> list[int] | None:
        """Tokens for this text; None if the target's tokenizer cannot spell it."""
        told: list[int] = []
        if begun:
            if not said.startswith(begun):
                return [] if begun.startswith(said) else None
            rest = said[len(begun) :]
            lacks = missing(begun)
            if len(rest) < lacks:
                return []
            letters = self._target.bytewise(rest[:lacks])
            if letters is None:
                return None
            told, said = letters, rest[lacks:]
        text, left = whole(said)
        if text.encode() + left != said:
            return None  # no text
        found = self._target.inside(text) if text else []
        return None if found is None else told + found
