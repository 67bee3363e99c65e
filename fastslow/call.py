"""How the arguments of a call are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastslow.engine.params import Mode, SamplingParams
from fastslow.engine.text.templates import Message
from fastslow.engine.types import Chooser

ModeWish = str | Mode | Mapping[str, Any] | Chooser
"""A preset's name, a mode, the fields of one, or what names a preset for what is asked."""
Presets = str | Path | Mapping[str, Mode | Mapping[str, Any]]


def spread(name: str, value: Any, count: int) -> list[Any]:
    """One value for each prompt: a list as it is, anything else repeated."""
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} entries for {count} prompts")
    return list(value)


def as_messages(messages: Any) -> list[Message]:
    """A text is one user message.

    Raises:
        ValueError: neither a text nor a list of messages.
    """
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if isinstance(messages, Sequence) and all(isinstance(m, Mapping) for m in messages):
        return list(messages)
    raise ValueError(f"messages={messages!r} must be text or a list of dicts with role and content")


def sampling_in(mode: Mode, params: SamplingParams | None) -> SamplingParams:
    """What a call asks for, over what its mode does; fields that neither names keep the default.

    Raises:
        ValueError: `params` is something else, or the fields do not fit together.
    """
    if params is not None and not isinstance(params, SamplingParams):
        raise ValueError(f"sampling must be SamplingParams, not {type(params).__name__}")
    if params is None or mode.sampling is None:
        return params or mode.sampling or SamplingParams()
    own, asked = ({f: getattr(p, f) for f in p.model_fields_set} for p in (mode.sampling, params))
    return SamplingParams(**{**own, **asked})
