"""Chats in the three protocols, asked by their official clients, in one form."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai

PATHS = {"chat": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}
SAID = "The quick brown fox"
CHAT: Any = [{"role": "user", "content": SAID}]
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
SAMPLED: dict[str, Any] = {"temperature": 1.0, "seed": 11, "ignore_eos": True}
WHERE = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Köln", "Ulm", 'a\n"b"']},
        "days": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
ENDS = {"max_tokens": "length", "end_turn": "stop", "stop_sequence": "stop"}
ENDS |= {"tool_use": "tool_calls"}


@dataclass(frozen=True)
class Said:
    """The content of an answer, without ids.

    Attributes:
        calls: names, and arguments, parsed where they are whole.
        end: why it ended, in OpenAI's words.
        tokens: of the prompt, of the answer, and how many of those are the thought.
    """

    thought: str
    text: str
    calls: list[tuple[str, Any]]
    end: str
    tokens: tuple[int, int, int]


def body_of(
    protocol: str,
    most: int = 24,
    functions: Sequence[dict[str, Any]] = (),
    choice: str | None = None,
    parallel: bool = True,
    **fields: Any,
) -> dict[str, Any]:
    """A request in the words of its protocol. `choice`: required, none, or a function's name."""
    body: dict[str, Any] = {"messages": CHAT, "max_tokens": most}
    if protocol == "responses":
        body = {"input": SAID, "max_output_tokens": most}
    named: dict[str, Any] = {"type": "function", "name": choice}
    match protocol:
        case "chat":
            offered = [{"type": "function", "function": tool} for tool in functions]
            named = {"type": "function", "function": {"name": choice}}
        case "messages":
            offered = [{**tool, "input_schema": tool["parameters"]} for tool in functions]
            for tool in offered:
                del tool["parameters"]
            words = {"required": "any", "none": "none", None: "auto"}
            named = {"type": words[choice]} if choice in words else {"type": "tool", "name": choice}
            if not parallel:
                named["disable_parallel_tool_use"] = True
        case _:
            offered = [{"type": "function", **tool} for tool in functions]
    if functions:
        body["tools"] = offered
    if choice is not None or (functions and protocol == "messages"):
        plain = protocol != "messages" and choice in ("required", "none")
        body["tool_choice"] = choice if plain else named
    if not parallel and protocol != "messages":
        body["parallel_tool_calls"] = False
    return body | fields


class Clients:
    """The official clients of a server, and a plain one."""

    def __init__(self, url: str) -> None:
        import anthropic  # three seconds, which only those who ask it wait for

        self.http = httpx.Client(base_url=url, timeout=60)
        self.claude = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
        self.gpt = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def close(self) -> None:
        for client in (self.http, self.claude, self.gpt):
            client.close()

    def made(self, protocol: str, **fields: Any) -> Any:
        """A whole answer, as its client gives it."""
        body: Any = body_of(protocol, **fields)
        match protocol:
            case "chat":
                return self.gpt.chat.completions.create(model="tiny", messages=body.pop("messages"), extra_body=body)
            case "messages":
                most, messages = body.pop("max_tokens"), body.pop("messages")
                return self.claude.messages.create(model="tiny", max_tokens=most, messages=messages, extra_body=body)
        return self.gpt.responses.create(model="tiny", input=body.pop("input"), extra_body=body)

    def ask(self, protocol: str, stream: bool = False, **fields: Any) -> Said:
        """An answer, whole or streamed."""
        if not stream:
            return READ[protocol](self.made(protocol, **fields))
        body: Any = body_of(protocol, **fields)
        match protocol:
            case "chat":
                return _streamed_chat(self.gpt, body)
            case "messages":
                most, messages = body.pop("max_tokens"), body.pop("messages")
                with self.claude.messages.stream(
                    model="tiny", max_tokens=most, messages=messages, extra_body=body
                ) as events:
                    return said_in_message(events.get_final_message())
        return said_in_response(_streamed_response(self.gpt, body))


@contextmanager
def clients(url: str) -> Iterator[Clients]:
    made = Clients(url)
    yield made
    made.close()


def _arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def said_in_chat(made: Any) -> Said:
    (choice,) = made.choices
    message, usage = choice.message, made.usage
    functions = [call.function for call in message.tool_calls or []]
    assert message.content is not None or functions
    return Said(
        getattr(message, "reasoning", None) or "", message.content or "",
        [(one.name, _arguments(one.arguments)) for one in functions], choice.finish_reason, _counted(usage),
    )  # fmt: skip


def _counted(usage: Any) -> tuple[int, int, int]:
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    return usage.prompt_tokens, usage.completion_tokens, usage.completion_tokens_details.reasoning_tokens


def _streamed_chat(gpt: openai.OpenAI, body: dict[str, Any]) -> Said:
    """The sum of the chunks: a call's id and name come first, and the reason to end last."""
    messages, usage, ends = body.pop("messages"), None, []
    texts = {"content": "", "reasoning": "", "reasoning_content": ""}
    calls: list[list[str]] = []
    body["stream_options"] = {"include_usage": True}
    for chunk in gpt.chat.completions.create(model="tiny", messages=messages, stream=True, extra_body=body):
        usage = chunk.usage
        for choice in chunk.choices:
            ends.append(choice.finish_reason)
            for name in texts:
                texts[name] += getattr(choice.delta, name, None) or ""
            for delta in choice.delta.tool_calls or []:
                assert delta.function is not None
                if delta.id is not None:
                    assert delta.type == "function" and delta.index == len(calls)
                    calls.append([delta.function.name or "", ""])
                calls[delta.index][1] += delta.function.arguments or ""
    assert ends[-1] is not None and not any(ends[:-1]) and usage is not None
    assert texts["reasoning"] == texts["reasoning_content"]
    made = [(name, _arguments(arguments)) for name, arguments in calls]
    return Said(texts["reasoning"], texts["content"], made, ends[-1], _counted(usage))


def said_in_message(made: Any) -> Said:
    usage = made.usage
    assert usage.cache_creation_input_tokens == 0 and made.role == "assistant"
    read = usage.input_tokens + usage.cache_read_input_tokens
    return Said(
        "".join(block.thinking for block in made.content if block.type == "thinking"),
        "".join(block.text for block in made.content if block.type == "text"),
        [(block.name, block.input) for block in made.content if block.type == "tool_use"],
        ENDS[made.stop_reason],
        (read, usage.output_tokens, usage.output_tokens_details.thinking_tokens),
    )


def said_in_response(made: Any) -> Said:
    called = [item for item in made.output if item.type == "function_call"]
    whole = "tool_calls" if called else "stop"
    if made.status == "incomplete":
        assert made.incomplete_details.reason == "max_output_tokens"
        assert {item.status for item in made.output[-1:]} <= {"incomplete"}
    usage = made.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    return Said(
        "".join(item.content[0].text for item in made.output if item.type == "reasoning"),
        made.output_text,
        [(item.name, _arguments(item.arguments)) for item in called],
        whole if made.status == "completed" else "length",
        (usage.input_tokens, usage.output_tokens, usage.output_tokens_details.reasoning_tokens),
    )


def _streamed_response(gpt: openai.OpenAI, body: dict[str, Any]) -> Any:
    """The response that the last event has; its items must be those that the other events made."""
    items: dict[int, Any] = {}
    asked = body.pop("input")
    event: Any = None
    for number, event in enumerate(gpt.responses.create(model="tiny", input=asked, stream=True, extra_body=body)):
        assert event.sequence_number == number
        match event.type:
            case "response.output_item.added":
                assert event.output_index == len(items) and event.item.status == "in_progress"
                items[event.output_index] = [event.item.id, ""]
            case str(kind) if kind.endswith(".delta"):
                assert event.item_id == items[event.output_index][0]
                items[event.output_index][1] += event.delta
            case "response.output_text.done" | "response.reasoning_text.done":
                assert event.text == items[event.output_index][1]
            case "response.function_call_arguments.done":
                assert event.arguments == items[event.output_index][1]
            case "response.output_item.done":
                items[event.output_index] = event.item
    assert event.type == f"response.{event.response.status}" and [*items.values()] == event.response.output
    return event.response


READ: dict[str, Callable[[Any], Said]] = {
    "chat": said_in_chat, "messages": said_in_message, "responses": said_in_response,
}  # fmt: skip
