"""The grammar of an answer in channels, behind the analysis: gpt-oss's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastslow.engine.text.thought import BODY, CHANNEL, END, START
from fastslow.serve.tool_calls.lark import TEXT, Schemas, quoted

CONSTRAIN = "<|constrain|>"
NEEDED = START, CHANNEL, BODY, END, CONSTRAIN


class ChannelGrammar:
    """Writes the grammar of one request. It begins behind the analysis: a call is a message of its own.

    Args:
        tokens: the marks that are special tokens, all of NEEDED among them.
        schemas: of the functions that may be called; an answer calls one.
    """

    def __init__(self, tokens: Mapping[str, int], schemas: Schemas) -> None:
        marks = {mark: f"<[{tokens[mark]}]>" for mark in NEEDED}
        self._channel, self._body, self._end = marks[CHANNEL], marks[BODY], marks[END]
        self._rules = [TEXT, f"next: {marks[START]} {quoted('assistant')}"]
        for place, (name, schema) in enumerate(schemas.items()):
            header = f"{quoted(name + ' ')} {marks[CONSTRAIN]} {quoted('json')} {self._body}"
            self._rules.append(f"f{place}: {header} a{place}")
            self._rules.append(f"a{place}: %json {json.dumps(schema)}")
        each = " | ".join(f"f{place}" for place in range(len(schemas)))
        self._rules.append(f"call: {self._channel} {quoted('commentary to=functions.')} ({each})")

    def required(self) -> str:
        """A call."""
        return self._whole("next call")

    def auto(self, answer: Mapping[str, Any] | None = None) -> str:
        """A call, with or without a word to the user before it, or an answer; `answer`: its schema."""
        said = "TEXT" if answer is None else f"%json {json.dumps(answer)}"
        self._rules.append(f"final: {self._channel} {quoted('final')} {self._body} {said}")
        word = f"{self._channel} {quoted('commentary')} {self._body} TEXT {self._end}"
        self._rules.append(f"word: {word}")
        return self._whole("next (word next)? (call | final)")

    def _whole(self, start: str) -> str:
        return "\n".join([f"start: {start}", *self._rules])
