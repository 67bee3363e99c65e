"""Parts that OpenAI's answers have in common: chunks, ends, usage."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

from fastslow.engine.sampling.stop import Reason
from fastslow.output import Completion, Output, Piece
from fastslow.serve.api.errors import ApiError, openai_shape
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.http.answer import Event, PlacedPiece
from fastslow.serve.http.route import ProtocolAnswer, metrics_of
from fastslow.serve.openai.chat_body import OpenAIFields
from fastslow.serve.openai.logprobs import tokens_in

C = TypeVar("C", bound=OpenAIFields)

Fields = dict[str, Any]
"""Of a choice, in a chunk."""
FINISH: dict[Reason, str] = {
    "stop": "stop",
    "length": "length",
    "loop": "length",  # there would have been more of the same
    "timeout": "length",  # there would have been more, too
    "cancelled": "length",
    "error": "length",
    "escalated": "length",
}


def usage_of(outputs: Sequence[Output]) -> dict[str, Any]:
    """The usage of one prompt's answers, or of several prompts' together."""
    choices = [choice for output in outputs for choice in output.choices]
    prompt = sum(len(output.prompt_token_ids) for output in outputs)
    answered = sum(len(choice.token_ids) for choice in choices)
    left = [n for choice in choices if (n := choice.metrics.turn_budget_left) is not None]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answered,
        "total_tokens": prompt + answered,
        "prompt_tokens_details": {
            "cached_tokens": sum(output.metrics.cached_tokens for output in outputs)
        },
        "completion_tokens_details": {
            "reasoning_tokens": sum(choice.metrics.thinking_tokens for choice in choices),
            "accepted_prediction_tokens": sum(c.metrics.prediction_accepted for c in choices),
            "rejected_prediction_tokens": sum(c.metrics.prediction_rejected for c in choices),
            **({"turn_budget_left": min(left)} if left else {}),
        },
    }


class ChunkedAnswer(ProtocolAnswer[C]):
    """An answer whose streamed form is chunks: of deltas, for each choice its end, at last the usage."""

    kind: ClassVar[str]  # the chunks' `object`
    empty: ClassVar[Fields]  # what the last chunk of a choice adds to it
    closing = "data: [DONE]\n\n"

    async def prepare(self, requests: Sequence[GenerateRequest]) -> None:
        body = self.body
        self._n = body.n or 1
        # likeliest tokens beside each; None = none
        self._top = requests[0].sampling.get("logprobs")
        self._fields: dict[str, Any] = {"id": self.id, "object": self.kind}
        self._fields |= {"created": self.created, "model": self.card.name}
        self._usage = {"usage": None} if body.streams("include_usage") else {}
        self._sources = body.streams("include_sources")
        self._shown: set[int] = set()  # choices of which something was streamed
        self._outputs: list[Output] = []

    def begin(self) -> list[Event]:
        return [self._chunk(index, fields) for index, fields in self.opening()]

    def end(self) -> list[Event]:
        usage = {**self._fields, "choices": [], "usage": usage_of(self._outputs)}
        return [usage] if self._usage else []

    def failed(self, error: ApiError) -> Event:
        return openai_shape(error)

    async def write(self, pieces: Sequence[PlacedPiece]) -> list[Event]:
        for _, piece in pieces:
            await self.tokens.learn(self.named(piece))
        return [chunk for place, piece in pieces for chunk in self._chunks(place, piece)]

    def _chunk(self, index: int, fields: Fields) -> Event:
        """Return a chunk with what is new of a choice."""
        rest = {"logprobs": fields.get("logprobs"), "finish_reason": None}
        choice = {"index": index, **fields, **rest}
        return {**self._fields, "choices": [choice], **self._usage}

    def _last_chunk(self, index: int, one: Completion) -> Event:
        """Return the chunk that says why a choice ended."""
        last = {"index": index, **self.empty, "logprobs": None}
        last |= {"finish_reason": self.finish(index, one), "stop_reason": one.stop_reason}
        more = {"choices": [last], **self._usage, "metrics": metrics_of(one)}
        return {**self._fields, **more}

    def _chunks(self, place: int, piece: Piece) -> Iterator[Event]:
        """The chunks of a piece of the answers to a prompt; at the end those of a choice of which nothing came."""
        first = place * self._n
        if piece.text or piece.reasoning or piece.token_ids:
            self._shown.add(first + piece.index)
            for fields in self.deltas(first + piece.index, piece):
                yield self._chunk(first + piece.index, fields)
        if piece.output is not None:
            self._outputs.append(piece.output)
            for index, one in enumerate(piece.output.choices, first):
                whole = Piece(one.text, one.reasoning)
                alone = index not in self._shown and (whole.text or whole.reasoning)
                unsent = self.deltas(index, whole) if alone else []
                for fields in (*unsent, *self.rest(index, one)):
                    yield self._chunk(index, fields)
                yield self._last_chunk(index, one)

    def named(self, piece: Piece) -> Iterable[int]:
        """Tokens whose texts the chunks of a piece hold."""
        return () if self._top is None else tokens_in(piece.logprobs, piece.token_ids)

    @abstractmethod
    def opening(self) -> Iterable[tuple[int, Fields]]:
        """Chunks of some choices before the first piece."""

    @abstractmethod
    def deltas(self, index: int, piece: Piece) -> list[Fields]:
        """The additions of a piece to a choice, for a chunk each."""

    def rest(self, index: int, one: Completion) -> list[Fields]:
        """The addition of its end."""
        return []

    def finish(self, index: int, one: Completion) -> str:
        """Why it ended."""
        return FINISH[one.finish_reason]
