"""How models write tool calls: one row for each format, chosen by what a chat template holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from fastslow.engine.text.vocabulary import Tokenizer

RESULT = "<tool_response>", "</tool_response>"  # around a result in a user's turn
LIST = "<tools>", "</tools>"  # around the descriptions


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One way to write calls.

    Attributes:
        name: for messages and the server.
        kind: what reads and writes it. "json": objects with a name and arguments; "messages": a message
            to the function; "xml": one element for each argument.
        begin, end: marks around a call, or around a list of calls. No `end`: to the end of the answer.
        key: what holds the arguments of an object.
        listed: all calls of an answer are one JSON list between the marks.
        bare: an answer may be calls from its first character on, without `begin`.
        shown: further special tokens that the text of an answer must show.
        stops: special tokens that end an answer with calls.
        id_length: letters of a call's id, where a template insists.
        signs: a template that holds all texts of one of these groups is written in the format.
    """

    name: str
    kind: Literal["json", "messages", "xml"]
    begin: str
    end: str = ""
    key: str = "arguments"
    listed: bool = False
    bare: bool = False
    shown: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    id_length: int = 0
    signs: tuple[tuple[str, ...], ...] = ()

    @property
    def marks(self) -> tuple[str, ...]:
        """What no user may write as a token."""
        every = (self.begin, self.end, *self.shown, *self.stops, *RESULT, *LIST)
        return tuple(mark for mark in every if mark)

    def tokens(self, tokenizer: Tokenizer) -> dict[str, int]:
        """The marks that are special tokens: a text shows them only when it is asked to."""
        found = {mark: tokenizer.token_id(mark) for mark in self.marks}
        return {m: n for m, n in found.items() if n is not None and n in tokenizer.special_ids}

    def written(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """Calls of JSON objects as the model writes them."""
        each = [{"name": call["name"], self.key: call["arguments"]} for call in calls]
        if self.listed:
            return f"{self.begin}{json.dumps(each, ensure_ascii=False)}{self.end}"
        texts = (json.dumps(one, ensure_ascii=False) for one in each)
        return "\n".join(f"{self.begin}\n{text}\n{self.end}" for text in texts)


GENERIC = ToolFormat("generic", "json", "<tool_call>", "</tool_call>")
FORMATS = (  # the first one whose signs a template holds
    ToolFormat(
        "pangu",
        "json",
        "[unused11]",
        "[unused12]",
        listed=True,
        signs=(("[unused11]",), ("[unused9]", "[unused10]")),
    ),
    ToolFormat(
        "harmony",
        "messages",
        "<|start|>",
        "<|end|>",
        shown=("<|channel|>", "<|message|>", "<|constrain|>", "<|call|>"),
        stops=("<|call|>",),
        signs=(("<|channel|>", "<|message|>"),),
    ),
    ToolFormat(
        "qwen3-coder",
        "xml",
        "<tool_call>",
        "</tool_call>",
        signs=(("<tool_call>", "<function=", "<parameter="),),
    ),
    ToolFormat(
        "hermes",
        "json",
        "<tool_call>",
        "</tool_call>",
        signs=(("<tool_call>", '"arguments"'), ("<tool_call>", "arguments | tojson")),
    ),
    ToolFormat(
        "llama3",
        "json",
        "<|python_tag|>",
        key="parameters",
        bare=True,
        stops=("<|eom_id|>",),
        signs=(("<|python_tag|>",), ('"parameters": ', "ipython")),
    ),
    ToolFormat(
        "mistral",
        "json",
        "[TOOL_CALLS]",
        listed=True,
        id_length=9,
        signs=(("[TOOL_CALLS]", '"arguments"'),),
    ),
)
BY_NAME = {each.name: each for each in (GENERIC, *FORMATS)}
PANGU, HARMONY = BY_NAME["pangu"], BY_NAME["harmony"]


def format_of(source: str) -> ToolFormat | None:
    """The format that a template's text is written in; None: none that is known."""
    for each in FORMATS:
        if any(all(sign in source for sign in group) for group in each.signs):
            return each
    return None


class ToolCalls(NamedTuple):
    """How one model writes calls.

    Attributes:
        tokens: the marks that are special tokens of its tokenizer.
    """

    form: ToolFormat = GENERIC
    tokens: Mapping[str, int] = MappingProxyType({})
