"""Formats of tool calls, as models write them: one row for each, chosen by what a chat template holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from fastslow.engine.text.vocabulary import Tokenizer

RESULT = "<tool_response>", "</tool_response>"  # around a result in a user's turn
LIST = "<tools>", "</tools>"  # around the descriptions


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """Format of tool calls.

    Attributes:
        kind: what reads and writes it. "json": objects with a name and arguments; "messages": a message to the
            function; "xml": an element for each argument; "pairs": elements for its name and its value; "invoke":
            as "xml", with names in quotes; "braces": objects whose strings stand between marks; "named": a name, then
            its arguments as JSON.
        begin, end: marks around a call, or around a list of calls. No `end`: to the end of the answer.
        key: what holds the arguments of an object.
        listed: all calls of an answer are between one pair of marks, as a JSON list where they are JSON.
        bare: an answer may be calls from its first character on, without `begin`.
        shown, stops: further special tokens that the text must show; those that end an answer with calls.
        id_length: letters of a call's id, where a template insists.
        signs: a template that holds all texts of one of these groups is written in the format.
    """

    name: str
    kind: Literal["json", "messages", "xml", "pairs", "invoke", "braces", "named"]
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
        """Marks that no user may write as tokens."""
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
        "openpangu",
        "json",
        "<|tool_call_start|>",
        "<|tool_call_end|>",
        listed=True,
        signs=(("<|tool_call_start|>", "<|pangu_text_start|>"),),
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
        "glm",
        "pairs",
        "<tool_call>",
        "</tool_call>",
        shown=("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
        signs=(("<tool_call>", "<arg_key>", "<arg_value>"),),
    ),
    ToolFormat(
        "minimax",
        "invoke",
        "<minimax:tool_call>",
        "</minimax:tool_call>",
        listed=True,
        signs=(("<minimax:tool_call>", "<invoke name="),),
    ),
    ToolFormat(
        "gemma4",
        "braces",
        "<|tool_call>",
        "<tool_call|>",
        shown=('<|"|>',),
        stops=("<|tool_response>",),
        signs=(("<|tool_call>call:",),),
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
        "granite",
        "json",
        "<|tool_call|>",
        listed=True,
        signs=(("<|tool_call|>", "JSON list"),),
    ),
    ToolFormat(
        "hunyuan",
        "json",
        "<tool_calls>",
        "</tool_calls>",
        listed=True,
        signs=(("<tool_calls>", '"arguments"'),),
    ),
    ToolFormat(
        "ministral",
        "named",
        "[TOOL_CALLS]",
        shown=("[CALL_ID]", "[ARGS]"),
        id_length=9,
        signs=(("[TOOL_CALLS]", "[ARGS]"),),
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
    """Format of one model's calls; tokens: the marks that are special tokens of its tokenizer."""

    form: ToolFormat = GENERIC
    tokens: Mapping[str, int] = MappingProxyType({})


BEFORE = "You may call functions to help with the request. Each line describes one:"
HOW = (
    "To call functions, write their names and arguments as JSON in this form, and nothing after it:"
)
NAME, ARGUMENTS = "<the function's name>", "<its arguments>"


def tool_block(tools: Sequence[Any], form: ToolFormat) -> str:
    """The description of tools for a model."""
    functions = (t.get("function", t) if isinstance(t, Mapping) else t for t in tools)
    lines = [json.dumps(function, ensure_ascii=False) for function in functions]
    example = form.written([{"name": NAME, "arguments": {"": ARGUMENTS}}])
    example = example.replace(json.dumps({"": ARGUMENTS}), f"{{{ARGUMENTS}}}")
    return "\n".join([BEFORE, LIST[0], *lines, LIST[1], HOW, example])


def plain_turns(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any],
    form: ToolFormat,
    in_system: bool,
    tool_turns: bool,
) -> list[Mapping[str, Any]]:
    """Messages without fields of tools, which are part of the contents.

    in_system: the template writes a system's turn; else the tools are described in front of the user's first.
    tool_turns: it writes turns of the role "tool" too; else results become the user's."""
    turns = list(_turns(messages, form, tool_turns))
    if not tools:
        return turns
    block = tool_block(tools, form)
    role = "system" if in_system else "user"
    place = next((i for i, turn in enumerate(turns) if turn["role"] == role), None)
    if place is None or (in_system and place > 0):
        return [{"role": role, "content": block}, *turns]
    content = str(turns[place]["content"])
    parts = [content, block] if in_system else [block, content]
    turns[place] = {**turns[place], "content": "\n\n".join(filter(None, parts))}
    return turns


def _turns(
    messages: Sequence[Mapping[str, Any]], form: ToolFormat, tool_turns: bool
) -> Iterator[Mapping[str, Any]]:
    results: list[str] = []  # one after the other become one turn
    for message in messages:
        if message["role"] == "tool" and not tool_turns:
            results.append(f"{RESULT[0]}\n{message['content']}\n{RESULT[1]}")
            continue
        if results and message["role"] == "user":
            message = {**message, "content": "\n".join([*results, message["content"]])}
        elif results:
            yield {"role": "user", "content": "\n".join(results)}
        results = []
        if "tool_calls" in message:
            calls = form.written([call["function"] for call in message["tool_calls"]])
            kept = {name: value for name, value in message.items() if name != "tool_calls"}
            yield {**kept, "content": "\n".join(filter(None, [message["content"], calls]))}
        else:
            yield message
    if results:
        yield {"role": "user", "content": "\n".join(results)}
