"""A chat as its template writes it: special tokens that a text only spells stay text, and thoughts of earlier
turns are put back where the template leaves them out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fastslow.engine.params import Thinking
from fastslow.engine.text.messages import Turn
from fastslow.engine.text.templates import ChatTemplate, Variables
from fastslow.engine.text.thought import HARMONY, ThoughtTags
from fastslow.engine.text.vocabulary import Tokenizer

NEWLINES = r"((?:\\n|\n)*)"  # in a template's source, where a text holds them or spells them


class ThoughtsLost(Exception):
    """Thoughts cannot be put back into this model's chats."""


class KeptThoughts:
    """Writes the thoughts of the assistant's turns between the tags, in front of what was answered.

    Each turn that has a thought is rendered with a sign in its place, which no template knows. So the next turn
    of a chat begins with the very text that was read and answered before, which the prefix cache holds.
    source: of the chat template, which tells how many line breaks follow a thought."""

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
        """The rendered chat with its thoughts. ThoughtsLost: the template did not write each turn once."""
        if any(text.count(sign) != 1 for sign in thoughts):
            raise ThoughtsLost
        open_tag, close = self._tags
        begun = ""  # what the template writes after a tag that it opens itself
        if self._tags.opened_by(text):
            begun = text[text.rindex(open_tag) + len(open_tag) :]
        empty = re.compile(re.escape(open_tag) + r"\s*" + re.escape(close) + r"\s*\Z")
        for sign, thought in thoughts.items():
            before, after = text.split(sign)
            whole = f"{open_tag}{begun}{thought}{close}{self._between}"
            text = empty.sub("", before) + whole + after
        return text


def kept_thoughts(tags: ThoughtTags | None, template: ChatTemplate) -> KeptThoughts:
    """For a model with these tags. ThoughtsLost: it has none that begin a thought, or channels."""
    if tags is None or not tags.open or tags == HARMONY:
        raise ThoughtsLost
    return KeptThoughts(tags, template.source)


SPARE = range(0xF0000, 0x10FFFE)  # for private use: no template writes these characters


class Marks:
    """Finds the spellings of special tokens, and of tags that are single tokens.

    A text is cut after the first character of each, and `Tokenizer.encode_parts` reads no token across a cut. A
    mark of one character cannot be cut and stays one. Where a tokenizer makes a mark of other letters, such as
    wide ones, it gets them one at a time."""

    def __init__(
        self, tokenizer: Tokenizer, tags: Iterable[str] | None = None, calls: Iterable[str] = ()
    ) -> None:
        """`tags`: of thoughts; `calls`: around calls of tools and their results."""
        self._as_matched = tokenizer.as_matched
        special = {
            tokenizer.token_bytes(n).decode("utf-8", "replace") for n in tokenizer.special_ids
        }
        single = {tag for tag in tags or () if tokenizer.token_id(tag) is not None}
        of_tools = {mark for mark in calls if tokenizer.token_id(mark) is not None}
        self._said = _any_of(special | single)
        self._by_role = {
            "assistant": _any_of(special - single),
            "tool": _any_of(special | single | of_tools),
        }

    def parts(self, text: str, role: object = "user") -> list[str]:
        """A text of a role's, cut inside every mark that it spells; the assistant's thinking tags are not cut."""
        pattern = self._by_role.get(str(role), self._said)
        parts, begun, found = [], 0, pattern.search(text)
        while found is not None:
            parts.append(text[begun : found.start() + 1])
            begun = found.start() + 1
            found = pattern.search(text, begun)
        parts.append(text[begun:])
        return [piece for part in parts for piece in self._letters(part, pattern)]

    def _letters(self, part: str, pattern: re.Pattern[str]) -> Iterable[str]:
        """A part, or its letters one by one where the tokenizer would see a mark in it."""
        matched = self._as_matched(part)
        return part if matched is not part and pattern.search(matched) else [part]

    def cut(self, message: Turn, sign: str) -> Turn:
        """A message with `sign` at the cuts of all its texts, names in its objects too."""
        role = message["role"]
        cut: Turn = _each_text(message, lambda text: sign.join(self.parts(text, role)))
        return message if cut == message else cut


def chat_parts(
    template: ChatTemplate,
    messages: Sequence[Turn],
    thinking: Thinking,
    marks: Marks | None,
    variables: Variables = MappingProxyType({}),
    kept: KeptThoughts | None = None,
) -> list[str]:
    """A chat as the template writes it, cut where messages spell `marks` (None: these are marks, too).

    A message with `"prefix": True` is begun and not ended: the text stops after its content. kept: puts the
    thoughts of earlier turns back. ThoughtsLost: that fails. ValueError: the template refuses the messages, or
    does not write the prefix as it stands."""
    texts: list[str] = []

    def seen(text: str) -> str:
        texts.append(text)
        return text

    try:
        _each_text([messages, variables], seen)
    except RecursionError:
        raise ValueError("messages nest too deep") from None
    spare = (chr(number) for number in SPARE if not any(chr(number) in text for text in texts))
    cut, end = next(spare), next(spare)
    thoughts: dict[str, str] = {}
    if kept is not None:
        messages, thoughts = kept.replaced(messages, spare)
    if marks is not None:
        thoughts = {sign: cut.join(marks.parts(text)) for sign, text in thoughts.items()}
        messages = [marks.cut(message, cut) for message in messages]
        variables = _each_text(variables, lambda text: cut.join(marks.parts(text, "tool")))
    *before, last = messages
    begun = last.get("prefix")
    if begun is not None:
        last = {name: value for name, value in last.items() if name != "prefix"}
    if not begun:
        text = template.render([*before, last], thinking, variables=variables)
    else:
        last = {**last, "content": last["content"] + end}
        whole = template.render([*before, last], thinking, False, variables)
        text, *rest = whole.split(end)
        if len(rest) != 1:
            raise ValueError(
                "the chat template does not write the assistant's prefix as it stands, so the answer "
                "cannot continue it"
            )
    text = text.replace(json.dumps(cut)[1:-1], cut)  # a template may have escaped it
    if kept is not None and thoughts:
        text = kept.put_back(text, thoughts)
    return text.split(cut)


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    long = sorted(text for text in texts if len(text) > 1)
    return re.compile("|".join(map(re.escape, long)) or r"(?!)")


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """A value of JSON's kinds with every text in it changed, names in objects too."""
    match value:
        case str():
            return change(value)
        case Mapping():
            names = (change(key) if isinstance(key, str) else key for key in value)
            return dict(zip(names, (_each_text(item, change) for item in value.values())))
        case list() | tuple():
            return [_each_text(item, change) for item in value]
    return value
