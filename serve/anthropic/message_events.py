"""An answer as Anthropic streams it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastslow.output import Output
from fastslow.serve.anthropic.answer import block_of, stop_of, usage, usage_of
from fastslow.serve.anthropic.errors import anthropic_shape
from fastslow.serve.api.answer_parts import AnswerPart, AnswerParts, Change
from fastslow.serve.api.errors import ApiError
from fastslow.serve.http.answer import PlacedPiece
from fastslow.serve.http.json_text import named_event
from fastslow.serve.observe.answer_metrics import metrics_of

PING = named_event("ping", {"type": "ping"})
DELTAS = {
    "thought": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    "call": ("input_json_delta", "partial_json"),
}


class MessageEvents:
    """Writes the message's start, its blocks with their deltas, and its end.

    Args:
        head: fields of the message.
        parts: of the answer.
        count: counts the tokens of the prompt.
    """

    def __init__(
        self, head: dict[str, Any], parts: AnswerParts, count: Callable[[], Awaitable[int]]
    ) -> None:
        self._head, self._parts, self._count = head, parts, count
        self._begun = False

    def begin(self) -> str:
        return ""  # the start tells the tokens of the prompt, which `write` counts

    async def write(self, pieces: Sequence[PlacedPiece]) -> str:
        """A bunch that is empty becomes a ping."""
        text = "" if self._begun else self._start(await self._count())
        self._begun = True
        if not pieces:
            return text + PING
        for _, piece in pieces:
            text += "".join(map(_event, self._parts.push(piece)))
            if piece.output is not None:
                text += self._finish(piece.output)
        return text

    def end(self) -> str:
        return named_event("message_stop", {"type": "message_stop"})

    def failed(self, error: ApiError) -> str:
        return named_event("error", anthropic_shape(error))

    def _start(self, prompt: int) -> str:
        """How many tokens were found in the prefix cache is known at the end only, and told there."""
        ahead: dict[str, Any] = {
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage(prompt, 0, 0, 0),
        }
        message = {**self._head, **ahead}
        return named_event("message_start", {"type": "message_start", "message": message}) + PING

    def _finish(self, output: Output) -> str:
        answer = output.choices[0]
        text = "".join(map(_event, self._parts.finish(answer)))
        last = {
            "type": "message_delta",
            "delta": stop_of(answer, self._parts),
            "usage": usage_of(output),
            "metrics": metrics_of(answer),
        }
        return text + named_event("message_delta", last)


def _event(change: Change) -> str:
    verb, part, text = change
    match verb:
        case "begun":
            block = block_of(AnswerPart(part.kind, part.index, part.id, part.name))
            return _named("content_block_start", part, content_block=block)
        case "more":
            kind, field = DELTAS[part.kind]
            return _named("content_block_delta", part, delta={"type": kind, field: text})
        case "ended":
            return _named("content_block_stop", part)


def _named(name: str, part: AnswerPart, **fields: Any) -> str:
    return named_event(name, {"type": name, "index": part.index, **fields})
