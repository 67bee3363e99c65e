"""An answer in Anthropic's words: its blocks, why it ended, and what it took."""

from __future__ import annotations

from typing import Any

from loguru import logger
from pydantic_core import from_json

from fastslow.output import Completion, Output
from fastslow.serve.api.answer_parts import AnswerPart, AnswerParts


def head_of(id: str, model: str) -> dict[str, Any]:
    """What a message begins with."""
    return {"id": id, "type": "message", "role": "assistant", "model": model}


def block_of(part: AnswerPart) -> dict[str, Any]:
    """A part as a block of the content."""
    match part.kind:
        case "thought":
            return {"type": "thinking", "thinking": part.text, "signature": ""}
        case "text":
            return {"type": "text", "text": part.text, "citations": None}
        case "call":
            return {
                "type": "tool_use",
                "id": part.id,
                "name": part.name,
                "input": _arguments(part),
            }


def stop_of(answer: Completion, parts: AnswerParts) -> dict[str, Any]:
    """`stop_reason` and `stop_sequence`."""
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


def usage_of(output: Output) -> dict[str, Any]:
    """Tokens; of the prompt's, those that were found in the prefix cache by themselves."""
    cached, answer = output.metrics.cached_tokens, output.choices[0]
    return usage(
        len(output.prompt_token_ids) - cached,
        cached,
        len(answer.token_ids),
        answer.metrics.thinking_tokens,
    )


def usage(read: int, cached: int, made: int, thought: int) -> dict[str, Any]:
    """Usage as a message has it."""
    return {
        "input_tokens": read,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": made,
        "output_tokens_details": {"thinking_tokens": thought},
    }


def _arguments(part: AnswerPart) -> dict[str, Any]:
    """The arguments of a call as far as they came: clients that stream read a cut one the same way."""
    text = part.text
    if not text.strip():
        return {}
    try:
        found = from_json(text, allow_partial=True)
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    logger.warning("a call of {} has arguments that are no object: it is told with none", part.name)
    return {}
