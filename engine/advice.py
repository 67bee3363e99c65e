"""A word to people whose drafts are hardly ever accepted."""

from __future__ import annotations

from fastslow.engine.output import Metrics

ENOUGH = 100  # nodes, before anything is said
POOR = 0.02  # of them accepted

CAUSES = {
    "ngram": "the answers repeat little of their texts",
    "suffix": "the answers repeat little that was said before",
    "head": "the head was trained for another model, or on other texts and modes",
    "self": "the groups or layers it keeps say other things than the whole model",
    "model": "the draft model says other things, as when it follows another chat template",
}


def advice(metrics: Metrics) -> str | None:
    """One sentence where acceptance stays near zero, with its likely cause; else None."""
    if metrics.drafted < ENOUGH or metrics.accepted >= POOR * metrics.drafted:
        return None
    names = metrics.drafter.replace("auto", "suffix").replace("|", "+").split("+")
    causes = "; or ".join(CAUSES[name] for name in names if name in CAUSES)
    return (
        f"drafter {metrics.drafter}: {metrics.accepted} of {metrics.drafted} drafted tokens were "
        f"accepted. Probably {causes}. Try `fastslow tune` on your prompts, or speculation='off'"
    )
