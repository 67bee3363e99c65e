"""/v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import Request, Response

from fastslow.output import Completion, Output, Piece
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.api.limits import Who
from fastslow.serve.http.answer import STREAMED, PlacedPiece
from fastslow.serve.http.body import json_router
from fastslow.serve.http.route import answer, metrics_of
from fastslow.serve.openai.chat_body import ChatRequest, as_turns
from fastslow.serve.openai.chunks import FINISH, ChunkedAnswer, usage_of
from fastslow.serve.openai.logprobs import Places, chat_logprobs, prompt_logprobs, tokens_in
from fastslow.serve.tool_calls.events import CallBegun, CallMore, Content, Event
from fastslow.serve.tool_calls.offered import openai_choice, openai_tools
from fastslow.serve.tool_calls.parser import ToolParser

router = json_router()


class ChatAnswer(ChunkedAnswer[ChatRequest]):
    """Messages; streamed, chunks of the role, of deltas, for each answer its end, at last the usage."""

    prefix, kind = "chatcmpl-", "chat.completion.chunk"

    def requests(self) -> list[GenerateRequest]:
        body, settings = self.body, self.settings
        body.check_n(1, settings)
        body.check_stream()
        turns, tools = as_turns(body.messages), openai_tools(body.tools)
        choice, parallel = openai_choice(body.tool_choice), body.parallel_tool_calls is not False
        prediction = None if body.prediction is None else body.prediction.text
        ask, self._tools = self.chat(
            "messages", turns, tools, choice, parallel, prediction=prediction
        )
        return [ask]

    async def prepare(self, requests: Sequence[GenerateRequest]) -> None:
        await super().prepare(requests)
        # likeliest tokens beside each; None = none
        self._top = requests[0].sampling.get("logprobs")
        self._thoughts = self.settings.thoughts_as if self.body.shows_thought else ()
        self._calls = [self._new_calls() for _ in range(self._n)]

    async def whole(self, outputs: Sequence[Output]) -> dict[str, Any]:
        (output,) = outputs
        for one in output.choices:
            if one.logprobs is not None:
                await self.tokens.learn(tokens_in(one.logprobs, one.token_ids))
        made = {
            **self._fields,
            "object": "chat.completion",
            "choices": [self._choice(i, one) for i, one in enumerate(output.choices)],
            "usage": usage_of(outputs),
            "metrics": metrics_of(output.choices[0]),
        }
        if output.prompt_logprobs is not None:
            await self.tokens.learn(tokens_in(output.prompt_logprobs))
            made["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs, self.tokens)
        return made

    def begin(self) -> str:
        role = {"role": "assistant", "content": ""}
        return "".join([self._chunk(index, role) for index in range(self._n)])

    async def write(self, pieces: Sequence[PlacedPiece]) -> str:
        if self._top is not None:
            for _, piece in pieces:
                await self.tokens.learn(tokens_in(piece.logprobs, piece.token_ids))
        if self._sources:
            await self.tokens.learn(token for _, piece in pieces for token in piece.token_ids)
        return "".join([self.piece(0, piece) for _, piece in pieces])

    def _new_calls(self) -> OpenAICalls | None:
        parser = self._tools.parser()
        return None if parser is None else OpenAICalls(parser)

    def _choice(self, index: int, one: Completion) -> dict[str, Any]:
        content, finish, calls = one.text, FINISH[one.finish_reason], self._calls[index]
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if calls is not None:
            content = calls.push(one.text)[0] + calls.finish()[0]
            if calls.whole:
                message |= {"content": content or None, "tool_calls": calls.whole}
                finish = "tool_calls" if finish == "stop" else finish
        if one.reasoning:
            message |= dict.fromkeys(self._thoughts, one.reasoning)
        made = {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(one.token_ids, one.logprobs),
            "finish_reason": finish,
            "stop_reason": one.stop_reason,
        }
        return made if self._n == 1 else {**made, "metrics": metrics_of(one)}

    def _logprobs(self, ids: Sequence[int], places: Places | None) -> dict[str, Any] | None:
        if places is None or self._top is None:
            return None
        return {"content": chat_logprobs(ids, places, self._top, self.tokens), "refusal": None}

    def deltas(self, index: int, piece: Piece) -> str:
        """The chunk of a piece; two where a thought ends in it, so that no client has to separate them."""
        content, calls = piece.text, self._calls[index]
        deltas: list[dict[str, Any]] = []
        if piece.reasoning and self._thoughts:
            deltas.append(dict.fromkeys(self._thoughts, piece.reasoning))
        called: list[dict[str, Any]] = []
        if calls is not None and content:
            content, called = calls.push(content)
        if content:
            deltas.append({"content": content})
        if called:
            deltas.append({"tool_calls": called})
        logprobs = self._logprobs(piece.token_ids, piece.logprobs or None)
        if not deltas and not (logprobs or self._sources):
            return ""
        first, *others = deltas or [{"content": ""}]
        if self._sources:
            ids, table = piece.token_ids, self.tokens
            texts = [table.text_of(token) if table.shows(token) else "" for token in ids]
            first |= {"token_ids": ids, "token_texts": texts, "sources": piece.sources}
        text = self._chunk(index, first, logprobs)
        return text + "".join([self._chunk(index, delta) for delta in others])

    def _chunk(self, index: int, delta: dict[str, Any], logprobs: Any = None) -> str:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        return self.chunk(choice)

    def ended(self, index: int, one: Completion) -> str:
        text, finish, calls = "", FINISH[one.finish_reason], self._calls[index]
        if calls is not None:
            content, called = calls.finish()
            for delta in ({"content": content}, {"tool_calls": called}):
                if any(delta.values()):
                    text += self._chunk(index, delta)
            if calls.whole and finish == "stop":
                finish = "tool_calls"
        return text + self.last_chunk(index, one, finish, delta={})


class OpenAICalls:
    """The calls in one answer, from its text in any pieces.

    Attributes:
        whole: all calls so far, as a message's `tool_calls` has them; the last one may be cut off.
    """

    def __init__(self, parser: ToolParser) -> None:
        self._parser = parser
        self._made: list[tuple[CallBegun, list[str]]] = []

    @property
    def whole(self) -> list[dict[str, Any]]:
        return [
            {
                "id": begun.id,
                "type": "function",
                "function": {"name": begun.name, "arguments": "".join(parts)},
            }
            for begun, parts in self._made
        ]

    def push(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """Take more text; returns what of it is content, and deltas as a chunk's `tool_calls` has them."""
        return self._told(self._parser.push(text))

    def finish(self) -> tuple[str, list[dict[str, Any]]]:
        """The same of what was held back, at the end of the answer."""
        return self._told(self._parser.finish())

    def _told(self, events: list[Event]) -> tuple[str, list[dict[str, Any]]]:
        content, deltas = [], []
        for found in events:
            match found:
                case Content(text):
                    content.append(text)
                case CallBegun(index, id, name):
                    self._made.append((found, []))
                    function = {"name": name, "arguments": ""}
                    deltas.append(
                        {"index": index, "id": id, "type": "function", "function": function}
                    )
                case CallMore(index, text):
                    self._made[index][1].append(text)
                    deltas.append({"index": index, "function": {"arguments": text}})
        return "".join(content), deltas


@router.post("/v1/chat/completions", response_model=None, responses=STREAMED)
async def chat_completions(body: ChatRequest, request: Request, who: Who) -> Response:
    """Answer a chat."""
    return await answer(ChatAnswer, body, request, who)
