"""gpt-oss's channels ("harmony"): an answer is messages, each with a header that names its channel."""

from __future__ import annotations

import re

from fastslow.engine.text.detokenizer import hold_back
from fastslow.engine.text.thought import HARMONY, ThoughtSplitter, ThoughtTags

START, CHANNEL, BODY, END, CALL = "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>"
MARKS = START, CHANNEL, BODY, END, CALL
TO_FUNCTION = re.compile(r"\bto=functions\.")
BREAK = "\n\n"  # between two messages of the reasoning


class ChannelSplitter(ThoughtSplitter):
    """Splits a stream of messages: the bodies of `final` are answer, those of all other channels are
    reasoning, and headers are dropped.

    What the model says in `commentary` is to a tool, or to the user before a tool is called: neither
    belongs to an answer, and a budget counts it among the thought. A text without a header is answer.
    With `calls` a message to a function is answer as the model wrote it, with its header and marks.
    """

    def __init__(self, opened: bool = False, calls: bool = False, once: bool = False) -> None:
        """`opened`: the text begins in the body of `analysis`. `once`: see `ThoughtSplitter`."""
        super().__init__(HARMONY, opened, once)
        self._calls = calls
        self._calling = False  # a message to a function is being read
        self._header: str | None = None  # that is being read
        self._reasoned = False  # there was some

    def push(self, text: str) -> tuple[str, str]:
        parts: tuple[list[str], list[str]] = ([], [])
        rest = self._held + text
        while not self._over and (found := [(rest.find(m), m) for m in MARKS if m in rest]):
            before, mark, rest = rest.partition(min(found)[1])
            self._put(before, parts)
            self._pass(mark, parts)
        cut = len(rest) if self._over else len(rest) - hold_back(rest, MARKS)
        self._put(rest[:cut], parts)
        self._held = rest[cut:]
        return "".join(parts[0]), "".join(parts[1])

    def _pass(self, mark: str, parts: tuple[list[str], list[str]]) -> None:
        header = self._header
        if mark == BODY and header is not None and self._calls and TO_FUNCTION.search(header):
            self._thinking, self._header, self._calling = False, None, True
            began = "" if header.startswith(START) else f"{START}assistant"
            parts[1].append(f"{began}{header}{BODY}")
        elif mark in (END, CALL) and self._calling:
            self._calling = False
            parts[1].append(mark)
        elif mark == BODY and header is not None:
            channel = header.rpartition(CHANNEL)[2].split() if CHANNEL in header else []
            self._thinking, self._header = channel[:1] not in ([], ["final"]), None
            self._over = self._once and not self._thinking
            if self._thinking and self._reasoned:
                parts[0].append(BREAK)
        elif mark == START or (mark == CHANNEL and header is None):
            self._header, self._calling = mark, False
        elif mark == CHANNEL:
            self._header = f"{header}{mark}"
        elif mark in (END, CALL):
            self._header = None

    def _put(self, text: str, parts: tuple[list[str], list[str]]) -> None:
        if self._header is not None:
            self._header += text
            return
        self._reasoned |= self._thinking and bool(text)
        parts[not self._thinking].append(text)


def splitter(
    tags: ThoughtTags | None, opened: bool, calls: bool = False, once: bool = False
) -> ThoughtSplitter:
    """What splits the answers of a model with these tags; `opened`: an answer begins inside a thought;
    `calls`: it may call functions, and the text shows how; `once`: where it has begun, all is answer."""
    if tags == HARMONY:
        return ChannelSplitter(
            opened, calls, once and not calls
        )  # calls have channels of their own
    return ThoughtSplitter(tags, opened, once)
