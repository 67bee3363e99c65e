"""Advice to the log where drafts are hardly ever accepted, or a prompt has the wrong form."""

from __future__ import annotations

from collections.abc import Sequence

from loguru import logger

from fastslow.draft.registry import AUTO, DRAFTERS, split_names
from fastslow.output import Metrics, Output
from fastslow.request.choice import ChoiceState, gathered
from fastslow.request.input_processor import InputProcessor

ENOUGH = 100  # nodes, before anything is said
POOR = 0.02  # of them accepted


def advice(metrics: Metrics) -> str | None:
    """One sentence where acceptance stays near zero, with its likely cause; else None."""
    if metrics.drafted < ENOUGH or metrics.accepted >= POOR * metrics.drafted:
        return None
    names = split_names(metrics.drafter.replace("auto", AUTO))
    causes = "; or ".join(DRAFTERS[name].likely_cause for name in names if name in DRAFTERS)
    return (
        f"drafter {metrics.drafter}: {metrics.accepted} of {metrics.drafted} drafted tokens were "
        f"accepted. Probably {causes}. Try `fastslow tune` on your prompts, or speculation='off'"
    )


class OutputBuilder:
    """Makes the output of choices that are over, and says what its callers may want to know; once each.

    Args:
        inputs: read the prompts.
    """

    def __init__(self, inputs: InputProcessor) -> None:
        self._inputs = inputs
        self._advised: set[str] = set()  # drafters

    def __call__(self, each: Sequence[ChoiceState]) -> Output:
        output = gathered(each)
        for choice in output.choices:
            hint = advice(choice.metrics)
            if hint is not None and choice.metrics.drafter not in self._advised:
                self._advised.add(choice.metrics.drafter)
                logger.warning(hint)
        self._inputs.advise(each[0].prompt, output.choices[0])
        return output
