"""What a client asks, in the words of no protocol: plain JSON values that also go to another process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastslow.engine.text.messages import Message


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt and how it is to be answered. Every protocol makes this; the engine checks it.

    Attributes:
        id: names the request, as in DELETE /v1/requests/{id}.
        prompt: text, token ids or messages, as `LLM.generate` takes them.
        sampling: fields of `SamplingParams` that the client gave.
        mode: a preset's name, or the fields of a `Mode`; None = "deep".
        speculation: a drafter's name, or the fields of a `Speculation`; None = "auto".
        timeout: seconds after which it ends with what it has; None = never.
        memory_key: whose remembered answers and cached prefixes it shares.
        chat_template_kwargs: variables of the chat template, `tools` among them.
        keep_thoughts: thoughts of earlier turns stay in the prompt, so that it is found in the prefix cache.
        priority: requests with a smaller number go first.
        prediction: text that the answer probably repeats; it is drafted from.
        defaults: fields of `SamplingParams` that hold where neither the client nor the mode gives them.
        streamed: whether pieces are wanted as they are made, or only the last one, with the output.
        trace: whether its steps are noted, for `Engine.trace`.
        answered: the fields of an `ResumeState`: the engine that began the answer ended, and this one goes on.
        avoid: replicas of the engine that failed under this ask.
        whole: where the engine closes before the answer's end, that is `NotReady` for whoever goes on with it
            elsewhere; else the answer ends with what it has.
    """

    id: str
    prompt: str | Sequence[int] | Sequence[Message]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    mode: str | Mapping[str, Any] | None = None
    speculation: str | Mapping[str, Any] | None = None
    timeout: float | None = None
    memory_key: str | None = None
    allow_special: bool = False
    chat_template_kwargs: Mapping[str, Any] | None = None
    keep_thoughts: bool = False
    priority: int = 0
    prediction: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    streamed: bool = True
    trace: bool = False
    answered: Mapping[str, Any] | None = None
    avoid: Sequence[str] = ()
    whole: bool = False
