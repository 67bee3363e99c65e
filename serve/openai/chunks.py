"""Parts that OpenAI's answers have in common: chunks, ends, usage."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

from fastslow.engine.sampling.stop import Reason
from fastslow.output import Completion, Output, Piece
from fastslow.serve.api.errors import ApiError, openai_shape
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.http.answer import PlacedPiece, event
from fastslow.serve.http.route import ProtocolAnswer, metrics_of
from fastslow.serve.openai.chat_body import OpenAIFields
from fastslow.serve.openai.logprobs import tokens_in

C = TypeVar("C", bound=OpenAIFields)

DONE = "data: [DONE]\n\n"
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

    def end(self) -> str:
        usage = {**self._fields, "choices": [], "usage": usage_of(self._outputs)}
        return (event(usage) if self._usage else "") + DONE

    def failed(self, error: ApiError) -> str:
        return event(openai_shape(error)) + DONE

    async def write(self, pieces: Sequence[PlacedPiece]) -> str:
        if self._top is not None:
            for _, piece in pieces:
                await self.tokens.learn(tokens_in(piece.logprobs, piece.token_ids))
        return "".join([self.piece(place, piece) for place, piece in pieces])

    def chunk(self, index: int, fields: dict[str, Any], logprobs: Any = None) -> str:
        """Return a chunk with what is new of a choice."""
        choice = {"index": index, **fields, "logprobs": logprobs, "finish_reason": None}
        return event({**self._fields, "choices": [choice], **self._usage})

    def last_chunk(self, index: int, one: Completion, finish: str, **empty: Any) -> str:
        """Return the chunk that says why a choice ended."""
        last = {"index": index, **empty, "logprobs": None}
        last |= {"finish_reason": finish, "stop_reason": one.stop_reason}
        more = {"choices": [last], **self._usage, "metrics": metrics_of(one)}
        return event({**self._fields, **more})

    def piece(self, place: int, piece: Piece) -> str:
        """The chunks of a piece of the answers to a prompt; at the end those of a choice of which nothing came."""
        first, text = place * self._n, ""
        if piece.text or piece.reasoning or piece.token_ids:
            self._shown.add(first + piece.index)
            text = self.deltas(first + piece.index, piece)
        if piece.output is not None:
            self._outputs.append(piece.output)
            for index, one in enumerate(piece.output.choices, first):
                if index not in self._shown and (one.text or one.reasoning):
                    text += self.deltas(index, Piece(one.text, one.reasoning))
                text += self.ended(index, one)
        return text

    @abstractmethod
    def deltas(self, index: int, piece: Piece) -> str:
        """The chunks of what a piece adds to a choice."""

    @abstractmethod
    def ended(self, index: int, one: Completion) -> str:
        """The last chunks of a choice."""
