"""Request of a client, in the words of no protocol: a prompt and its `GenerateOptions`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastslow.engine.text.messages import Message
from fastslow.request.options import GenerateOptions

USUAL = GenerateOptions()


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A prompt and how it is to be answered. Every protocol makes this; the engine checks it. In a server, `options`
    holds plain JSON values (and a `ResumeState`), which go to another process unchanged."""

    id: str  # as in DELETE /v1/requests/{id}
    prompt: str | Sequence[int] | Sequence[Message]  # as `LLM.generate` takes it
    options: GenerateOptions = USUAL
    streamed: bool = True  # pieces are wanted as they are made, not only the last, with the output
    avoid: Sequence[str] = ()  # replicas of the engine that failed under this request
    # an engine that closes before the answer's end raises `NotReady`, so that another one can continue the answer
    whole: bool = False

    @property
    def sampling(self) -> Mapping[str, Any]:
        """Fields of `SamplingParams` that the client gave."""
        given: Any = self.options.sampling
        return given or {}

    def with_options(self, **changes: Any) -> GenerateRequest:
        """The same with other options."""
        return replace(self, options=self.options.model_copy(update=changes))
