"""Calls that are messages to a function: gpt-oss's."""

from __future__ import annotations

import re

from fastslow.engine.text.thought import BODY, CALL, END, START
from fastslow.serve.tool_calls.feed import Reading, SearchedMarks
from fastslow.serve.tool_calls.json_values import loaded
from fastslow.serve.tool_calls.parser import ToolParser

TO = re.compile(r"\bto=functions\.([\w-]+)")
HEADER_ENDS = SearchedMarks(BODY, START, END, CALL)
BODY_ENDS = SearchedMarks(START, END, CALL)


class MessageParser(ToolParser):
    """The body of a message is the arguments. The splitter of channels leaves only these messages."""

    def _section(self, bare: bool = False) -> Reading[None]:
        mark = START
        while mark == START:
            header: list[str] = []
            ended = yield from self.feed.until(HEADER_ENDS, header.append)
            text = "".join(header)
            name = TO.search(text)
            if ended != BODY or name is None or name[1] not in self._names:
                self._say(START + text)
                mark = ended
                if ended != START:
                    self._say(ended)
                continue
            self._begun(name[1])
            self._body: list[str] = []
            mark = yield from self.feed.until(BODY_ENDS, self._both)
            whole = "".join(self._body)
            if not whole.strip():
                self._more("{}")
            if mark or not whole.strip() or loaded(whole) is not None:
                self._closed()

    def _both(self, part: str) -> None:
        self._body.append(part)
        self._more(part)
