"""What an answer took, in OpenAI's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel

from fastslow.engine.sampling.stop import Reason
from fastslow.output import Output

Finish = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]
FINISH: dict[Reason, Finish] = {
    "stop": "stop",
    "length": "length",
    "timeout": "length",  # there would have been more, too
    "cancelled": "length",
    "error": "length",
    "escalated": "length",
}


class PromptDetails(BaseModel):
    cached_tokens: int


class CompletionDetails(BaseModel):
    reasoning_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(BaseModel):
    """Tokens, exactly."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


def usage_of(outputs: Sequence[Output]) -> dict[str, Any]:
    """The usage of one prompt's answers, or of several prompts' together."""
    choices = [choice for output in outputs for choice in output.choices]
    prompt = sum(len(output.prompt_token_ids) for output in outputs)
    answered = sum(len(choice.token_ids) for choice in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answered,
        "total_tokens": prompt + answered,
        "prompt_tokens_details": {
            "cached_tokens": sum(output.metrics.cached_tokens for output in outputs)
        },
        "completion_tokens_details": {
            "reasoning_tokens": sum(choice.metrics.thinking_tokens for choice in choices),
            "accepted_prediction_tokens": sum(c.metrics.prediction_accepted for c in choices),
            "rejected_prediction_tokens": sum(c.metrics.prediction_rejected for c in choices),
        },
    }
