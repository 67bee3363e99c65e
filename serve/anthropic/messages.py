"""/v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import Request, Response
from loguru import logger
from pydantic_core import from_json

from fastslow.output import Completion, Output
from fastslow.serve.anthropic.body import MessagesRequest, PromptRequest, as_turns
from fastslow.serve.api.errors import ApiError, fitting
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.api.limits import Who
from fastslow.serve.http.answer import STREAMED, Event, PlacedPiece
from fastslow.serve.http.body import json_router
from fastslow.serve.http.route import ProtocolAnswer, answer, checked, metrics_of
from fastslow.tool_calls.answer_parts import AnswerPart, AnswerParts, Change
from fastslow.tool_calls.offered import anthropic_choice, anthropic_tools

router = json_router()
KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
PING: Event = {"type": "ping"}
DELTAS = {
    "thought": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    "call": ("input_json_delta", "partial_json"),
}


class MessageAnswer(ProtocolAnswer[PromptRequest]):
    """A message; streamed, its start, its blocks with their deltas, and its end."""

    prefix = "msg_"

    def requests(self) -> list[GenerateRequest]:
        body = self.body
        turns, tools = as_turns(body.system, body.messages), anthropic_tools(body.tools)
        choice, parallel = anthropic_choice(body.tool_choice)
        self._request, support = self.chat("messages", turns, tools, choice, parallel)
        self._parts = AnswerParts(support.parser(), not body.hides_thought)
        self._head = {"id": self.id, "type": "message", "role": "assistant"}
        self._head["model"] = self.card.name
        self._begun = False
        return [self._request]

    async def whole(self, outputs: Sequence[Output]) -> dict[str, Any]:
        one = outputs[0].choices[0]
        self._parts.finish(one)
        return {
            **self._head,
            "content": [_block(part) for part in self._parts.parts],
            **_stop(one, self._parts),
            "usage": _usage_of(outputs[0]),
            "metrics": metrics_of(one),
        }

    async def write(self, pieces: Sequence[PlacedPiece]) -> list[Event]:
        """A bunch that is empty becomes a ping."""
        events = [] if self._begun else await self._start()
        self._begun = True
        if not pieces:
            return [*events, PING]
        for _, piece in pieces:
            events += map(_event, self._parts.push(piece))
            if piece.output is not None:
                events += self._finish(piece.output)
        return events

    def end(self) -> list[Event]:
        return [{"type": "message_stop"}]

    def failed(self, error: ApiError) -> Event:
        return anthropic_shape(error)

    async def _start(self) -> list[Event]:
        """Return the first events. The hits in the prefix cache are known at the end only, and stand there."""
        prompt = len(await self.engine.tokenize(self._request))
        reasons = {"stop_reason": None, "stop_sequence": None}
        message: dict[str, Any] = {**self._head, "content": [], **reasons}
        message["usage"] = _usage(prompt, 0, 0, 0)
        return [{"type": "message_start", "message": message}, PING]

    def _finish(self, output: Output) -> list[Event]:
        one = output.choices[0]
        events = list(map(_event, self._parts.finish(one)))
        last = {
            "type": "message_delta",
            "delta": _stop(one, self._parts),
            "usage": _usage_of(output),
            "metrics": metrics_of(one),
        }
        return [*events, last]


def anthropic_shape(error: ApiError) -> dict[str, Any]:
    """The body of an answer that is an error."""
    usual = "api_error" if error.status >= 500 else "invalid_request_error"
    kind = KINDS.get(error.status, usual)
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def _event(change: Change) -> Event:
    verb, part, text = change
    match verb:
        case "begun":
            block = _block(replace(part, texts=[]))
            return _named("content_block_start", part, content_block=block)
        case "more":
            kind, field = DELTAS[part.kind]
            return _named("content_block_delta", part, delta={"type": kind, field: text})
        case "ended":
            return _named("content_block_stop", part)


def _named(name: str, part: AnswerPart, **fields: Any) -> Event:
    return {"type": name, "index": part.index, **fields}


def _block(part: AnswerPart) -> dict[str, Any]:
    match part.kind:
        case "thought":
            return {"type": "thinking", "thinking": part.text, "signature": ""}
        case "text":
            return {"type": "text", "text": part.text, "citations": None}
        case "call":
            return {"type": "tool_use", "id": part.id, "name": part.name, "input": _arguments(part)}


def _stop(answer: Completion, parts: AnswerParts) -> dict[str, Any]:
    met = None
    if answer.finish_reason != "stop":
        reason = "max_tokens"
    elif parts.calls:
        reason = "tool_use"
    elif isinstance(answer.stop_reason, str):
        reason, met = "stop_sequence", answer.stop_reason
    else:
        reason = "end_turn"
    return {"stop_reason": reason, "stop_sequence": met}


def _usage_of(output: Output) -> dict[str, Any]:
    """Tokens; of the prompt's, those that were found in the prefix cache by themselves."""
    cached, answer = output.metrics.cached_tokens, output.choices[0]
    read, thought = len(output.prompt_token_ids) - cached, answer.metrics.thinking_tokens
    usage = _usage(read, cached, len(answer.token_ids), thought)
    if (left := answer.metrics.turn_budget_left) is not None:
        usage["output_tokens_details"]["turn_budget_left"] = left
    return usage


def _usage(read: int, cached: int, made: int, thought: int) -> dict[str, Any]:
    return {
        "input_tokens": read,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": made,
        "output_tokens_details": {"thinking_tokens": thought},
    }


def _arguments(part: AnswerPart) -> dict[str, Any]:
    """The arguments of a call as far as they came: clients that stream read a cut one the same way."""
    try:
        found: dict[str, Any] = from_json(part.text or "{}", allow_partial=True)
    except ValueError:  # such as half of a surrogate pair
        logger.warning("a call of {} has arguments that are no JSON: its input is empty", part.name)
        return {}
    return found


@router.post("/v1/messages", response_model=None, responses=STREAMED)
async def messages(body: MessagesRequest, request: Request, who: Who) -> Response:
    """Answer a conversation."""
    return await answer(MessageAnswer, body, request, who)


@router.post("/v1/messages/count_tokens")
async def count_tokens(body: PromptRequest, request: Request, who: Who) -> dict[str, int]:
    """The tokens that a conversation's prompt has, tools and all, whether they are in the prefix cache or not."""
    made = MessageAnswer(body, who, request.app.state)
    (counted,) = await checked(made)
    with fitting(PromptRequest.model_fields):
        return {"input_tokens": len(await made.engine.tokenize(counted))}
