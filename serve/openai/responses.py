"""/v1/responses. Nothing is kept: an answer can neither be fetched again nor be continued by its id."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastapi import Request, Response

from fastslow.engine.params import shown
from fastslow.output import Output
from fastslow.serve.api.errors import ApiError
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.api.limits import Who
from fastslow.serve.http.answer import STREAMED, PlacedPiece, event
from fastslow.serve.http.body import json_router
from fastslow.serve.http.route import ProtocolAnswer, answer, metrics_of
from fastslow.serve.openai.chunks import FINISH, usage_of
from fastslow.serve.openai.responses_body import ResponsesRequest, as_turns
from fastslow.serve.tool_calls.answer_parts import AnswerPart, AnswerParts, Change
from fastslow.serve.tool_calls.offered import openai_choice, openai_tools

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
        ask, prepared = self.chat("input", turns, tools, choice, parallel)
        self._head = _head(self.id, self.card.name, body)
        self._parts = AnswerParts(prepared.parser(), not body.hides_thought)
        self._number = 0
        return [ask]

    async def whole(self, outputs: Sequence[Output]) -> dict[str, Any]:
        self._parts.finish(outputs[0].choices[0])
        return _ended(self._head, self._parts, outputs[0])

    def begin(self) -> str:
        begun = _under_way(self._head)
        return "".join(
            self._event(f"response.{name}", response=begun) for name in ("created", "in_progress")
        )

    async def write(self, pieces: Sequence[PlacedPiece]) -> str:
        text = ""
        for _, piece in pieces:
            text += self._changed(self._parts.push(piece))
            if (output := piece.output) is None:
                continue
            changes = self._parts.finish(output.choices[0])
            whole = _ended(self._head, self._parts, output)
            text += self._changed(changes[:-1])
            if changes:  # the last one ends the last item
                text += self._change(*changes[-1], status=whole["status"])
            text += self._event(f"response.{whole['status']}", response=whole)
        return text

    def failed(self, error: ApiError) -> str:
        return self._event("response.failed", response=_failed(self._head, self._parts, error))

    def _changed(self, changes: Sequence[Change]) -> str:
        return "".join([self._change(*change) for change in changes])

    def _change(self, verb: str, part: AnswerPart, text: str, status: str = "completed") -> str:
        """`status`: of an item that ends."""
        match verb:
            case "begun":
                empty = AnswerPart(part.kind, part.index, part.id, part.name, part.key)
                item = _item_of(empty, "in_progress")
                made = self._event("response.output_item.added", output_index=part.index, item=item)
                return made + self._content("added", empty)
            case "more":
                more: dict[str, Any] = {} if part.kind != "text" else {"logprobs": []}
                return self._text("delta", part, delta=text, **more)
            case _:
                return self._done(part, status)

    def _done(self, part: AnswerPart, status: str) -> str:
        match part.kind:
            case "call":
                made = self._text("done", part, arguments=part.text)
            case "text":
                made = self._text("done", part, text=part.text, logprobs=[])
            case "thought":
                made = self._text("done", part, text=part.text)
        made += self._content("done", part)
        item = _item_of(part, status)
        return made + self._event("response.output_item.done", output_index=part.index, item=item)

    def _text(self, name: str, part: AnswerPart, **fields: Any) -> str:
        place = self._place(part)
        return self._event(f"{TEXTS[part.kind]}.{name}", **place, **fields)

    def _content(self, name: str, part: AnswerPart) -> str:
        """A call has none."""
        if part.kind == "call":
            return ""
        content = _content_of(part)
        return self._event(f"response.content_part.{name}", **self._place(part), part=content)

    @staticmethod
    def _place(part: AnswerPart) -> dict[str, Any]:
        place: dict[str, Any] = {"item_id": _item_id(part), "output_index": part.index}
        return place if part.kind == "call" else {**place, "content_index": 0}

    def _event(self, name: str, **fields: Any) -> str:
        self._number += 1
        return event({"type": name, "sequence_number": self._number - 1, **fields}, name)


def _head(id: str, model: str, asked: ResponsesRequest) -> dict[str, Any]:
    """What every form of a response has: mostly what was asked."""
    text = {"format": {"type": "text"}}
    if asked.text is not None and asked.text.format is not None:
        text["format"] = asked.text.format.model_dump(mode="json", exclude_none=True)
    reasoning = {} if asked.reasoning is None else asked.reasoning.model_dump(exclude_none=True)
    return {
        "id": id,
        "object": "response",
        "created_at": int(time.time()),
        "model": model,
        "background": False,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "metadata": asked.metadata or {},
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": asked.reasoning_effort, "summary": None, **reasoning},
        "store": False,
        "temperature": asked.temperature,
        "text": text,
        "tool_choice": "auto" if asked.tool_choice is None else asked.tool_choice,
        "tools": asked.tools or [],
        "top_p": asked.top_p,
        "truncation": "disabled",
    }


def _under_way(head: dict[str, Any]) -> dict[str, Any]:
    """A response of which nothing is there yet."""
    return {**head, **_state("in_progress"), "output": [], "usage": None}


def _ended(head: dict[str, Any], parts: AnswerParts, output: Output) -> dict[str, Any]:
    """The whole response. One that a limit cut ends with an item that is not complete."""
    answer = output.choices[0]
    complete = FINISH[answer.finish_reason] == "stop"
    items = [_item_of(part, "completed") for part in parts.parts]
    if items and not complete:
        items[-1]["status"] = "incomplete"
    state = _state("completed" if complete else "incomplete")
    if not complete:
        state["incomplete_details"] = {"reason": "max_output_tokens"}
    usage = usage_of([output])
    details = usage["prompt_tokens_details"]
    thought = usage["completion_tokens_details"]["reasoning_tokens"]
    tokens = {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {**details, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": usage["total_tokens"],
    }
    return {**head, **state, "output": items, "usage": tokens, "metrics": metrics_of(answer)}


def _failed(head: dict[str, Any], parts: AnswerParts, error: ApiError) -> dict[str, Any]:
    """A response in the middle of which something went wrong."""
    code = CODES.get(error.status, "server_error")
    made = {**head, **_state("failed"), "error": {"code": code, "message": error.message}}
    return {**made, "output": [_item_of(part, "incomplete") for part in parts.parts], "usage": None}


def _item_of(part: AnswerPart, status: str) -> dict[str, Any]:
    """A part as an item of the output."""
    item: dict[str, Any] = {"id": _item_id(part), "status": status}
    match part.kind:
        case "thought":
            content = [_content_of(part)] if status != "in_progress" else []
            item |= {"type": "reasoning", "summary": [], "content": content}
            return item | {"encrypted_content": None}
        case "text":
            content = [_content_of(part)] if status != "in_progress" else []
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
    """Names an item."""
    return f"{PREFIXES[part.kind]}_{part.key}"


def _state(status: str) -> dict[str, Any]:
    return {"status": status, "error": None, "incomplete_details": None}


@router.post("/v1/responses", response_model=None, responses=STREAMED)
async def responses(body: ResponsesRequest, request: Request, who: Who) -> Response:
    """Answer a conversation."""
    return await answer(ResponsesAnswer, body, request, who)


@router.get("/v1/responses/{id}", name="get_response")
@router.get("/v1/responses/{id}/input_items", name="get_input_items")
@router.post("/v1/responses/{id}/cancel", name="cancel_response")
@router.delete("/v1/responses/{id}", name="delete_response")
async def kept_response(id: str, who: Who) -> None:
    """There is none. DELETE /v1/requests/{id} ends a request that runs."""
    said = f"response {shown(id)} is not here: this server keeps no answers"
    raise ApiError(404, said, param="id", code="not_found")
