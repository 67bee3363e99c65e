"""Calls of tools as the makers' own helpers read them, however the text of an answer is cut; and frameworks that people
build on, of which one that is not installed is skipped: the project does not need them."""

import json
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, Literal

import openai
import pytest
from fake_engine import FakeEngine, output
from protocols import CHAT, SAID, Clients, clients
from pydantic import BaseModel, Field
from serve_tools import served

from fastslow.engine.text.tool_formats import GENERIC
from fastslow.output import Piece
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.app import create_app


class Weather(BaseModel):
    """The weather of a city."""

    city: str
    days: int


class Place(BaseModel):
    """A stay: where and how long."""

    city: Literal["Ulm", "Rom"]
    days: int = Field(ge=1, le=9)


class Clock(BaseModel):
    zone: Literal["UTC", "CET"]


FIRST, LAST = Weather(city='Köln, "old"', days=2), Weather(city="Ulm", days=3)
CALLS: list[BaseModel] = [FIRST, Clock(zone="UTC"), LAST]
NAMES: dict[type[BaseModel], str] = {Weather: "get_weather", Clock: "clock"}
CALLED = [(NAMES[type(call)], call.model_dump()) for call in CALLS]
TEXT = "Let me look.\n" + GENERIC.written([{"name": n, "arguments": a} for n, a in CALLED])
TOOLS: Any = [openai.pydantic_function_tool(kind, name=name) for kind, name in NAMES.items()]
FLAT: Any = [{"type": "function", **tool["function"]} for tool in TOOLS]
CLAUDE: Any = [{"name": name, "input_schema": kind.model_json_schema()} for kind, name in NAMES.items()]
CUTS: dict[str, Callable[[str], list[str]]] = {
    "one piece": lambda text: [text],
    "letters": list,
    "steps": lambda text: [text[at : at + 37] for at in range(0, len(text), 37)],
}


@pytest.fixture(scope="module", params=CUTS)
def served_by(request: pytest.FixtureRequest) -> Iterator[Clients]:
    async def script(_: GenerateRequest) -> AsyncGenerator[Piece, None]:
        for part in CUTS[request.param](TEXT):
            yield Piece(part, token_ids=[1])
        yield Piece(output=output(TEXT))

    with served(create_app(FakeEngine(script))) as url, clients(url) as made:
        yield made


def test_a_chunk_has_one_entry_for_a_call(served_by: Clients) -> None:
    """Clients add up what comes: some read no more than one entry for each call."""
    starts: list[int] = []
    body = {"model": "tiny", "messages": CHAT, "tools": TOOLS, "stream": True}
    for chunk in served_by.gpt.chat.completions.create(**body):
        for choice in chunk.choices:
            entries = choice.delta.tool_calls or []
            assert len({entry.index for entry in entries}) == len(entries)
            starts += [entry.index for entry in entries if entry.id is not None]
            for entry in entries:
                assert entry.function is not None
                assert entry.function.name is None or entry.function.arguments == ""
    assert starts == [0, 1, 2]


def test_chat_completions_stream_and_parse(served_by: Clients) -> None:
    asked: Any = {"model": "tiny", "messages": CHAT, "tools": TOOLS}
    with served_by.gpt.chat.completions.stream(**asked) as stream:
        done = [
            (event.name, json.loads(event.arguments), event.parsed_arguments)
            for event in stream
            if event.type == "tool_calls.function.arguments.done"
        ]
        streamed = stream.get_final_completion()
    assert done == [(*called, call) for called, call in zip(CALLED, CALLS)]
    both: list[Any] = [streamed, served_by.gpt.chat.completions.parse(**asked)]
    for made in both:
        (choice,) = made.choices
        assert choice.finish_reason == "tool_calls" and choice.message.content == "Let me look."
        assert [call.function.parsed_arguments for call in choice.message.tool_calls or []] == CALLS


def test_responses_stream_and_parse(served_by: Clients) -> None:
    asked: Any = {"model": "tiny", "input": SAID, "tools": FLAT}
    with served_by.gpt.responses.stream(**asked) as stream:
        done = [
            json.loads(event.arguments) for event in stream if event.type == "response.function_call_arguments.done"
        ]
        streamed = stream.get_final_response()
    assert done == [arguments for _, arguments in CALLED]
    both: list[Any] = [streamed, served_by.gpt.responses.parse(**asked)]
    for made in both:
        assert made.output_text == "Let me look."
        items = [item for item in made.output if item.type == "function_call"]
        assert [(item.name, item.parsed_arguments) for item in items] == CALLED


def test_messages_stream(served_by: Clients) -> None:
    asked: Any = {"model": "tiny", "messages": CHAT, "max_tokens": 99, "tools": CLAUDE}
    with served_by.claude.messages.stream(**asked) as stream:
        parts: dict[int, str] = {}
        for event in stream:
            if event.type == "content_block_delta" and event.delta.type == "input_json_delta":
                parts[event.index] = parts.get(event.index, "") + event.delta.partial_json
        streamed = stream.get_final_message()
    assert [json.loads(text) for text in parts.values()] == [each for _, each in CALLED]
    both: list[Any] = [streamed, served_by.claude.messages.create(**asked)]
    for made in both:
        assert made.stop_reason == "tool_use"
        blocks = [block for block in made.content if block.type == "tool_use"]
        assert [(block.name, block.input) for block in blocks] == CALLED
        assert [block.text for block in made.content if block.type == "text"] == ["Let me look."]
