"""An answer as /v1/responses has it: what was asked, its items, how it ended."""

from __future__ import annotations

import time
from typing import Any

from fastslow.output import Output
from fastslow.serve.api.answer_parts import AnswerPart, AnswerParts
from fastslow.serve.api.errors import ApiError
from fastslow.serve.observe.answer_metrics import metrics_of
from fastslow.serve.openai.responses_schema import ResponsesRequest
from fastslow.serve.openai.usage import FINISH, usage_of

PREFIXES = {"thought": "rs", "text": "msg", "call": "fc"}
CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}


def head_of(id: str, model: str, asked: ResponsesRequest) -> dict[str, Any]:
    """What every form of a response tells: mostly what was asked."""
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


def under_way(head: dict[str, Any]) -> dict[str, Any]:
    """A response of which nothing is there yet."""
    return {**head, **_state("in_progress"), "output": [], "usage": None}


def ended(head: dict[str, Any], parts: AnswerParts, output: Output) -> dict[str, Any]:
    """The whole response. One that a limit cut ends with an item that is not complete."""
    answer = output.choices[0]
    complete = FINISH[answer.finish_reason] == "stop"
    items = [item_of(part, "completed") for part in parts.parts]
    if items and not complete:
        items[-1]["status"] = "incomplete"
    state = _state("completed" if complete else "incomplete")
    if not complete:
        state["incomplete_details"] = {"reason": "max_output_tokens"}
    usage = usage_of([output])
    details = usage["prompt_tokens_details"]
    thought = usage["completion_tokens_details"]["reasoning_tokens"]
    told = {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {**details, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": usage["total_tokens"],
    }
    return {**head, **state, "output": items, "usage": told, "metrics": metrics_of(answer)}


def failed(head: dict[str, Any], parts: AnswerParts, error: ApiError) -> dict[str, Any]:
    """A response in the middle of which something went wrong."""
    code = CODES.get(error.status, "server_error")
    made = {**head, **_state("failed"), "error": {"code": code, "message": error.message}}
    return {**made, "output": [item_of(part, "incomplete") for part in parts.parts], "usage": None}


def item_of(part: AnswerPart, status: str) -> dict[str, Any]:
    """A part as an item of the output."""
    item: dict[str, Any] = {"id": item_id(part), "status": status}
    match part.kind:
        case "thought":
            content = [content_of(part)] if status != "in_progress" else []
            item |= {"type": "reasoning", "summary": [], "content": content}
            return item | {"encrypted_content": None}
        case "text":
            content = [content_of(part)] if status != "in_progress" else []
            return item | {"type": "message", "role": "assistant", "content": content}
        case "call":
            item |= {"type": "function_call", "call_id": part.id, "name": part.name}
            return item | {"arguments": part.text}


def content_of(part: AnswerPart) -> dict[str, Any]:
    """The content of a thought's or a text's item."""
    if part.kind == "thought":
        return {"type": "reasoning_text", "text": part.text}
    return {"type": "output_text", "text": part.text, "annotations": [], "logprobs": []}


def item_id(part: AnswerPart) -> str:
    """Names an item."""
    return f"{PREFIXES[part.kind]}_{part.key}"


def _state(status: str) -> dict[str, Any]:
    return {"status": status, "error": None, "incomplete_details": None}
