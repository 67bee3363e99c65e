"""Features of a step's rows that drafters want."""

from __future__ import annotations

from fastslow.engine.core.step.layout import StepLayout
from fastslow.engine.types import AcceptResult, Features, ModelOutput


def committed_features(
    out: ModelOutput, layout: StepLayout, result: AcceptResult
) -> Features | None:
    """Features [C, F], request by request: of the last token's row, then of each accepted node's."""
    if out.seen is None:
        return None
    accepted = result.accepted_nodes
    if len(accepted) == 1 and accepted[0] == list(range(len(accepted[0]))):
        first = layout.verify_features[0]  # the usual case: adjacent rows, which need no copy
        return out.seen[first : first + len(accepted[0]) + 1]
    rows = [
        first + i
        for first, nodes in zip(layout.verify_features, accepted, strict=True)
        for i in (0, *(node + 1 for node in nodes))
    ]
    return out.seen[rows]


def read_features(out: ModelOutput, layout: StepLayout) -> Features | None:
    """Features [C, F] of the rows of text that drafters wanted, request by request."""
    if out.seen is None or not layout.text_features:
        return None
    return out.seen[layout.text_features]
