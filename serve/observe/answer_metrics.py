"""How an answer came about, as the answer's own field tells."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from fastslow.engine.sampling.stop import Reason
from fastslow.output import Completion


class AnswerMetrics(BaseModel):
    """`Metrics` of the answer, without what its trace has."""

    model_config = ConfigDict(extra="allow")

    finish_reason: Reason
    mode: str
    decision: str
    drafter: str
    ttft: float
    tokens_per_step: float


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
