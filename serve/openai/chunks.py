"""What OpenAI's answers have in common: chunks, ends, usage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastslow.engine.sampling.stop import Reason
from fastslow.output import Output
from fastslow.serve.http.answer import event

DONE = "data: [DONE]\n\n"
FINISH: dict[Reason, str] = {
    "stop": "stop",
    "length": "length",
    "timeout": "length",  # there would have been more, too
    "cancelled": "length",
    "error": "length",
    "escalated": "length",
}


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


class Chunks:
    """Writes the chunks of a streamed answer.

    Args:
        fields: that all of them have.
        usage: the last chunk has the usage, and in all others it is null.
    """

    def __init__(self, fields: dict[str, Any], usage: bool) -> None:
        self._fields, self._usage = fields, usage

    def chunk(self, choice: dict[str, Any], **more: Any) -> str:
        """One with a choice, and further fields."""
        made = {**self._fields, "choices": [choice]}
        if self._usage:
            made["usage"] = None
        return event({**made, **more} if more else made)

    def end(self, outputs: Sequence[Output]) -> str:
        """The usage, where it is wanted."""
        if not self._usage:
            return ""
        return event({**self._fields, "choices": [], "usage": usage_of(outputs)})
