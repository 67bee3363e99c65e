"""An answer's tool calls, parsed at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fastslow.engine.text.tool_formats import ToolFormat
from fastslow.serve.tool_calls.events import CallBegun, CallMore, Content, Event
from fastslow.serve.tool_calls.parsers import Functions, parser_of


@dataclass(slots=True)
class Call:
    """A call; `arguments` are JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Parsed:
    """An answer, or the beginning of one.

    Attributes:
        complete: no call is left open.
    """

    content: str = ""
    calls: list[Call] = field(default_factory=list)
    complete: bool = True

    @classmethod
    def of(cls, events: Iterable[Event], complete: bool = True) -> Parsed:
        """The sum of events."""
        content: list[str] = []
        calls: list[Call] = []
        arguments: list[list[str]] = []
        for event in events:
            match event:
                case Content(text):
                    content.append(text)
                case CallBegun(_, id, name):
                    calls.append(Call(id, name))
                    arguments.append([])
                case CallMore(index, text):
                    arguments[index].append(text)
        for call, texts in zip(calls, arguments, strict=True):
            call.arguments = "".join(texts)
        return cls("".join(content), calls, complete)


def parse(text: str, form: ToolFormat, functions: Functions, ended: bool = True) -> Parsed:
    """The content and the calls of a text so far; `ended`: it is the whole answer."""
    parser = parser_of(form, functions)
    events = parser.push(text)
    if ended:
        events += parser.finish()
    return Parsed.of(events, parser.complete)
