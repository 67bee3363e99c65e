"""Fields of a `Request` by their plain names, wherever they lie."""

from dataclasses import fields
from typing import Any

from fastslow.engine.core.request_parts import AnswerLog, Drafting, EncodedPrompt, Scheduling, Sharing, Timing

PARTS = {"drafting": Drafting, "log": AnswerLog, "scheduling": Scheduling, "sharing": Sharing, "timing": Timing}


def request_fields(given: dict[str, Any]) -> dict[str, Any]:
    """The same fields, in the values that a request holds."""
    found = dict(given)
    if "tokens" in found:
        found["prompt"] = EncodedPrompt(found.pop("tokens"))
    for part, kind in PARTS.items():
        names = kind._fields if kind is Drafting else [field.name for field in fields(kind)]
        own = {name: found.pop(name) for name in names if name in found}
        if own:
            found[part] = kind(**own)
    return found
