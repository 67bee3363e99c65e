"""Splitting what a model thinks from what it answers."""

from __future__ import annotations

from typing import NamedTuple

from fastslow.engine.text.holdback import hold_back
from fastslow.engine.text.template import ChatTemplate
from fastslow.engine.text.tokenizer import Tokenizer


class ThoughtTags(NamedTuple):
    """The texts between which a model thinks."""

    open: str
    close: str

    def ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Ids of those tags that are single tokens: what `Detokenizer(keep=...)` has to show, since
        a splitter looks for the tags in the text and a special token has none by default."""
        found = (tokenizer.token_id(tag) for tag in self)
        return frozenset(number for number in found if number is not None)

    def opened_by(self, prompt: str) -> bool:
        """Whether a prompt ends with the open tag, so that the model starts inside a thought."""
        return prompt.rstrip().endswith(self.open)


KNOWN = (ThoughtTags("[unused16]", "[unused17]"), ThoughtTags("<think>", "</think>"))


def tags_for(tokenizer: Tokenizer, template: ChatTemplate | None = None) -> ThoughtTags | None:
    """The tags of a model: openPangu's `[unused16]`/`[unused17]` or `<think>`/`</think>`, whichever
    are tokens of its vocabulary or, failing that, are written in its template; else None."""
    for tags in KNOWN:
        if len(tags.ids(tokenizer)) == len(tags):
            return tags
    source = "" if template is None else template.source
    return next((tags for tags in KNOWN if all(tag in source for tag in tags)), None)


class ThoughtSplitter:
    """Splits a stream of text into reasoning and answer; tags may be cut anywhere.

    What is between the tags is reasoning, all else is answer; the tags are dropped, and so are the
    newlines between a thought and its answer. A thought that is never closed is reasoning to the
    end. A close tag outside a thought, or an open tag inside one, is only dropped. Without tags
    all is answer.
    """

    def __init__(self, tags: ThoughtTags | None, opened: bool = False) -> None:
        """`opened`: the text begins inside a thought (see `ThoughtTags.opened_by`)."""
        self._tags = tags
        self._thinking = opened and tags is not None
        self._bare = False  # newlines after a close tag are still being dropped
        self._held = ""

    def push(self, text: str) -> tuple[str, str]:
        """Take more text; returns what is certain by now to be (reasoning, answer)."""
        if self._tags is None:
            return "", text
        parts: tuple[list[str], list[str]] = ([], [])
        rest = self._held + text
        while (found := self._first_tag(rest)) is not None:
            before, tag, rest = rest.partition(found)
            self._put(before, parts)
            if tag == self._tags.open:
                self._thinking = True
            elif self._thinking:
                self._thinking, self._bare = False, True
        cut = len(rest) - hold_back(rest, self._tags)
        self._put(rest[:cut], parts)
        self._held = rest[cut:]
        return "".join(parts[0]), "".join(parts[1])

    def finish(self) -> tuple[str, str]:
        """What was still held back, since it might have become a tag, as (reasoning, answer)."""
        parts: tuple[list[str], list[str]] = ([], [])
        self._put(self._held, parts)
        self._held = ""
        return "".join(parts[0]), "".join(parts[1])

    def _first_tag(self, text: str) -> str | None:
        found = [(text.find(tag), tag) for tag in self._tags or () if tag in text]
        return min(found)[1] if found else None

    def _put(self, text: str, parts: tuple[list[str], list[str]]) -> None:
        if self._thinking:
            parts[0].append(text)
            return
        if self._bare:
            text = text.lstrip("\n")
            self._bare = not text
        parts[1].append(text)
