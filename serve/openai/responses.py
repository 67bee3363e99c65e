"""/v1/responses. Nothing is kept: an answer can neither be fetched again nor be continued by its id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import Request, Response

from fastslow.output import Output
from fastslow.serve.api.errors import ApiError
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.api.limits import Who
from fastslow.serve.http.answer import STREAMED, Event, PlacedPiece
from fastslow.serve.http.body import json_router
from fastslow.serve.http.route import ProtocolAnswer, answer, metrics_of
from fastslow.serve.openai.chunks import FINISH, usage_of
from fastslow.serve.openai.responses_body import ResponsesRequest, as_turns
from fastslow.tool_calls.answer_parts import AnswerPart, AnswerParts
from fastslow.tool_calls.offered import openai_choice, openai_tools

router = json_router()
PREFIXES = {"thought": "rs", "text": "msg", "call": "fc"}
CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}
TEXTS = {
    "thought": "response.reasoning_text",
    "text": "response.output_text",
    "call": "response.function_call_arguments",
}


class ResponsesAnswer(ProtocolAnswer[ResponsesRequest]):
    """A response; streamed, its start, its items with their deltas, and the whole of it."""

    prefix = "resp_"

    def requests(self) -> list[GenerateRequest]:
        body = self.body
        body.check()
        turns, tools = as_turns(body.instructions, body.input), openai_tools(body.tools)
        choice, parallel = openai_choice(body.tool_choice), body.parallel_tool_calls is not False
        request, support = self.chat("input", turns, tools, choice, parallel)
        self._parts = AnswerParts(support.parser(), not body.hides_thought)
        self._number = 0
        return [request]

    async def whole(self, outputs: Sequence[Output]) -> dict[str, Any]:
        self._parts.finish(outputs[0].choices[0])
        return self._ended(outputs[0])

    def begin(self) -> list[Event]:
        begun = self._response("in_progress", [])
        each = ("created", "in_progress")
        return [self._event(f"response.{name}", response=begun) for name in each]

    async def write(self, pieces: Sequence[PlacedPiece]) -> list[Event]:
        events: list[Event] = []
        for _, piece in pieces:
            for change in self._parts.push(piece):
                events += self._change(*change)
            if (output := piece.output) is not None:
                changes = self._parts.finish(output.choices[0])
                whole = self._ended(output)
                for number, change in enumerate(changes, 1):  # the last one ends the last item
                    status = whole["status"] if number == len(changes) else "completed"
                    events += self._change(*change, status=status)
                events.append(self._event(f"response.{whole['status']}", response=whole))
        return events

    def failed(self, error: ApiError) -> Event:
        items = [_item_of(part, "incomplete") for part in self._parts.parts]
        code = CODES.get(error.status, "server_error")
        said = {"code": code, "message": error.message}
        response = self._response("failed", items, error=said)
        return self._event("response.failed", response=response)

    def _change(
        self, verb: str, part: AnswerPart, text: str, status: str = "completed"
    ) -> list[Event]:
        """`status`: of an item that ends."""
        match verb:
            case "begun":
                empty = replace(part, texts=[])
                return [self._item("added", empty, "in_progress"), *self._content("added", empty)]
            case "more":
                more: dict[str, Any] = {"logprobs": []} if part.kind == "text" else {}
                return [self._text("delta", part, delta=text, **more)]
        whole: dict[str, Any] = {"arguments" if part.kind == "call" else "text": part.text}
        if part.kind == "text":
            whole["logprobs"] = []
        made = [self._text("done", part, **whole), *self._content("done", part)]
        return [*made, self._item("done", part, status)]

    def _item(self, name: str, part: AnswerPart, status: str) -> Event:
        item = _item_of(part, status)
        return self._event(f"response.output_item.{name}", output_index=part.index, item=item)

    def _text(self, name: str, part: AnswerPart, **fields: Any) -> Event:
        return self._event(f"{TEXTS[part.kind]}.{name}", **_place(part), **fields)

    def _content(self, name: str, part: AnswerPart) -> list[Event]:
        """A call has none."""
        if part.kind == "call":
            return []
        content = _content_of(part)
        return [self._event(f"response.content_part.{name}", **_place(part), part=content)]

    def _event(self, name: str, **fields: Any) -> Event:
        self._number += 1
        return {"type": name, "sequence_number": self._number - 1, **fields}

    def _ended(self, output: Output) -> dict[str, Any]:
        """The whole response. One that a limit cut ends with an item that is not complete."""
        answer, more = output.choices[0], {}
        items = [_item_of(part, "completed") for part in self._parts.parts]
        status = "completed"
        if FINISH[answer.finish_reason] != "stop":
            status = "incomplete"
            more["incomplete_details"] = {"reason": "max_output_tokens"}
            for item in items[-1:]:
                item["status"] = status
        made = self._response(status, items, **more)
        return {**made, "usage": _usage(output), "metrics": metrics_of(answer)}

    def _response(self, status: str, items: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """Return the fields that every form of a response has: mostly what the client sent."""
        body = self.body
        text = {"format": {"type": "text"}}
        if body.text is not None and body.text.format is not None:
            text["format"] = body.text.format.model_dump(mode="json", exclude_none=True)
        reasoning = {} if body.reasoning is None else body.reasoning.model_dump(exclude_none=True)
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "model": self.card.name,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "output": items,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": body.reasoning_effort, "summary": None, **reasoning},
            "store": False,
            "temperature": body.temperature,
            "text": text,
            "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
            "tools": body.tools or [],
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None,
            **more,
        }


def _usage(output: Output) -> dict[str, Any]:
    usage = usage_of([output])
    details = usage["completion_tokens_details"]
    named = {"reasoning_tokens", "turn_budget_left"}
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {**usage["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {k: n for k, n in details.items() if k in named},
        "total_tokens": usage["total_tokens"],
    }


def _item_of(part: AnswerPart, status: str) -> dict[str, Any]:
    item: dict[str, Any] = {"id": _item_id(part), "status": status}
    content = [_content_of(part)] if status != "in_progress" else []
    match part.kind:
        case "thought":
            item |= {"type": "reasoning", "summary": [], "content": content}
            return item | {"encrypted_content": None}
        case "text":
            return item | {"type": "message", "role": "assistant", "content": content}
        case "call":
            item |= {"type": "function_call", "call_id": part.id, "name": part.name}
            return item | {"arguments": part.text}


def _content_of(part: AnswerPart) -> dict[str, Any]:
    """The content of a thought's or a text's item."""
    if part.kind == "thought":
        return {"type": "reasoning_text", "text": part.text}
    return {"type": "output_text", "text": part.text, "annotations": [], "logprobs": []}


def _item_id(part: AnswerPart) -> str:
    return f"{PREFIXES[part.kind]}_{part.key}"


def _place(part: AnswerPart) -> dict[str, Any]:
    place: dict[str, Any] = {"item_id": _item_id(part), "output_index": part.index}
    return place if part.kind == "call" else {**place, "content_index": 0}


@router.post("/v1/responses", response_model=None, responses=STREAMED)
async def responses(body: ResponsesRequest, request: Request, who: Who) -> Response:
    """Answer a conversation."""
    return await answer(ResponsesAnswer, body, request, who)
