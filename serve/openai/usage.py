"""What an answer took, and how it came about, as the answer's own fields tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from fastslow.engine.sampling.stop import Reason
from fastslow.output import Completion, Output

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


class AnswerMetrics(BaseModel):
    """`Metrics` of the answer, without what its trace has."""

    model_config = ConfigDict(extra="allow")

    finish_reason: Reason
    mode: str
    decision: str
    drafter: str
    ttft: float
    tokens_per_step: float


def usage_of(outputs: Sequence[Output]) -> dict[str, Any]:
    """The usage of one prompt's answers, or of several prompts' together."""
    choices = [choice for output in outputs for choice in output.choices]
    prompt = sum(len(output.prompt_token_ids) for output in outputs)
    answered = sum(len(choice.token_ids) for choice in choices)
    accepted, rejected = _predicted(choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answered,
        "total_tokens": prompt + answered,
        "prompt_tokens_details": {
            "cached_tokens": sum(output.metrics.cached_tokens for output in outputs)
        },
        "completion_tokens_details": {
            "reasoning_tokens": sum(choice.metrics.thinking_tokens for choice in choices),
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": rejected,
        },
    }


def metrics_of(choice: Completion) -> dict[str, Any]:
    """How an answer came about, as plain JSON values."""
    made = choice.metrics.to_dict()
    del made["runs"]  # one for each step: the trace has them
    speculative = speculative_decoding(choice)
    return {"finish_reason": choice.finish_reason, **made, "speculative_decoding": speculative}


def speculative_decoding(choice: Completion) -> dict[str, Any]:
    """vLLM's summary of a request's drafts."""
    made = choice.metrics
    histogram = [0] * (max(made.runs, default=0) + 1)
    for accepted in made.runs:
        histogram[accepted] += 1
    return {
        "mean_acceptance_length": 1 + made.mean_accepted,
        "draft_acceptance_rate": made.acceptance_rate,
        "acceptance_histogram": histogram,
        "num_spec_steps": made.steps,
        "num_accepted_draft_tokens": made.accepted,
        "num_draft_tokens": made.drafted,
        "num_spec_tokens": len(made.acceptance),
    }


def _predicted(choices: Sequence[Completion]) -> tuple[int, int]:
    """Tokens of the client's prediction that were drafted: accepted, and not."""
    accepted = rejected = 0
    for choice in choices:
        counts = choice.metrics.by_drafter.get("prediction")
        if counts is not None:
            accepted += counts.accepted
            rejected += counts.drafted - counts.accepted
    return accepted, rejected
