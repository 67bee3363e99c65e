"""Thoughts of earlier turns, put back into a chat where its template leaves them out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from fastslow.engine.text.messages import Turn
from fastslow.engine.text.templates import ChatTemplate
from fastslow.engine.text.thought import HARMONY, ThoughtTags

NEWLINES = r"((?:\\n|\n)*)"  # in a template's source, where a text holds them or spells them


class ThoughtsLost(Exception):
    """Thoughts cannot be put back into this model's chats."""


class KeptThoughts:
    """Writes the thoughts of the assistant's turns between the tags, in front of what was answered.

    Each turn that has a thought is rendered with a sign in its place, which no template knows; what the
    template makes of thoughts does not matter then. So a chat that goes on begins with the very text that
    was read and answered before, which the prefix cache holds.

    Args:
        tags: the model's.
        source: of the chat template, which tells how many line breaks follow a thought.
    """

    def __init__(self, tags: ThoughtTags, source: str) -> None:
        self._tags = tags
        written = re.findall(re.escape(tags.close) + NEWLINES, source)
        self._between = max((text.replace("\\n", "\n") for text in written), key=len, default="")

    def replaced(
        self, turns: Sequence[Turn], signs: Iterator[str]
    ) -> tuple[list[Turn], dict[str, str]]:
        """The turns with a sign in front of each content that has a thought, and the thoughts by sign."""
        shown: list[Turn] = []
        thoughts: dict[str, str] = {}
        for turn in turns:
            thought = turn.get("reasoning_content")
            if turn["role"] == "assistant" and thought and not turn.get("prefix"):
                sign = next(signs)
                thoughts[sign] = thought
                turn = {name: value for name, value in turn.items() if name != "reasoning_content"}
                turn["content"] = sign + turn["content"]
            shown.append(turn)
        return shown, thoughts

    def put_back(self, text: str, thoughts: dict[str, str]) -> str:
        """The rendered chat with its thoughts.

        Raises:
            ThoughtsLost: the template did not write each turn once.
        """
        if any(text.count(sign) != 1 for sign in thoughts):
            raise ThoughtsLost
        open_tag, close = self._tags
        begun = ""  # what the template writes behind a tag that it opens itself
        if self._tags.opened_by(text):
            begun = text[text.rindex(open_tag) + len(open_tag) :]
        empty = re.compile(re.escape(open_tag) + r"\s*" + re.escape(close) + r"\s*\Z")
        for sign, thought in thoughts.items():
            before, after = text.split(sign)
            whole = f"{open_tag}{begun}{thought}{close}{self._between}"
            text = empty.sub("", before) + whole + after
        return text


def kept_thoughts(tags: ThoughtTags | None, template: ChatTemplate) -> KeptThoughts:
    """For a model with these tags.

    Raises:
        ThoughtsLost: it has none, or none to begin with, or its thoughts are messages of their own.
    """
    if tags is None or not tags.open or tags == HARMONY:
        raise ThoughtsLost
    return KeptThoughts(tags, template.source)
