"""/v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import Request, Response

from fastslow.output import Completion, Output, Piece
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.api.limits import Who
from fastslow.serve.api.turns import texts_of
from fastslow.serve.http.answer import STREAMED
from fastslow.serve.http.body import json_router
from fastslow.serve.http.route import answer, metrics_of
from fastslow.serve.openai.chat_body import ChatRequest, as_turns
from fastslow.serve.openai.chunks import FINISH, ChunkedAnswer, Fields, usage_of
from fastslow.serve.openai.logprobs import Places, chat_logprobs, tokens_in
from fastslow.tool_calls.answer_parts import AnswerPart, AnswerParts, Change
from fastslow.tool_calls.offered import openai_choice, openai_tools

router = json_router()
Delta = dict[str, Any]


class ChatAnswer(ChunkedAnswer[ChatRequest]):
    """Messages; streamed, chunks of the role, of deltas, for each answer its end, at last the usage."""

    prefix, kind, empty = "chatcmpl-", "chat.completion.chunk", {"delta": {}}

    def requests(self) -> list[GenerateRequest]:
        body = self.body
        body.check(1, self.settings)
        turns, tools = as_turns(body.messages), openai_tools(body.tools)
        choice, parallel = openai_choice(body.tool_choice), body.parallel_tool_calls is not False
        prediction = None
        if body.prediction is not None:
            prediction = "".join(texts_of("prediction.content", body.prediction.content))
        request, self._tools = self.chat(
            "messages", turns, tools, choice, parallel, prediction=prediction
        )
        return [request]

    async def prepare(self, requests: Sequence[GenerateRequest]) -> None:
        await super().prepare(requests)
        shows, parser = self.body.shows_thought, self._tools.parser
        self._thoughts = self.settings.thoughts_as
        self._parts = [AnswerParts(parser(), shows) for _ in range(self._n)]

    async def whole(self, outputs: Sequence[Output]) -> dict[str, Any]:
        (output,) = outputs
        for one in output.choices:
            if one.logprobs is not None:
                await self.tokens.learn(tokens_in(one.logprobs, one.token_ids))
        return {
            **self._fields,
            "object": "chat.completion",
            "choices": [self._choice(i, one) for i, one in enumerate(output.choices)],
            "usage": usage_of(outputs),
            "metrics": metrics_of(output.choices[0]),
        }

    def opening(self) -> list[tuple[int, Fields]]:
        role = {"delta": {"role": "assistant", "content": ""}}
        return [(index, role) for index in range(self._n)]

    def named(self, piece: Piece) -> list[int]:
        return [*super().named(piece), *(piece.token_ids if self._sources else ())]

    def _choice(self, index: int, one: Completion) -> dict[str, Any]:
        parts = self._parts[index]
        parts.finish(one)
        text = parts.text_of("text")
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if parts.calls:
            calls = [_call(part) for part in parts.calls]
            message |= {"content": text or None, "tool_calls": calls}
        if thought := parts.text_of("thought"):
            message |= dict.fromkeys(self._thoughts, thought)
        made = {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(one.token_ids, one.logprobs),
            "finish_reason": self.finish(index, one),
            "stop_reason": one.stop_reason,
        }
        return made if self._n == 1 else {**made, "metrics": metrics_of(one)}

    def finish(self, index: int, one: Completion) -> str:
        finish = FINISH[one.finish_reason]
        return "tool_calls" if finish == "stop" and self._parts[index].calls else finish

    def _logprobs(self, ids: Sequence[int], places: Places | None) -> dict[str, Any] | None:
        if places is None or self._top is None:
            return None
        return {"content": chat_logprobs(ids, places, self._top, self.tokens), "refusal": None}

    def deltas(self, index: int, piece: Piece) -> list[Fields]:
        """One; several where a thought ends in it or a call begins."""
        deltas = self._deltas(self._parts[index].push(piece))
        logprobs = self._logprobs(piece.token_ids, piece.logprobs or None)
        if not deltas and not (logprobs or self._sources):
            return []
        first, *others = deltas or [{"content": ""}]
        if self._sources:
            ids, table = piece.token_ids, self.tokens
            texts = [table.text_of(token) if table.shows(token) else "" for token in ids]
            first |= {"token_ids": ids, "token_texts": texts, "sources": piece.sources}
        return [{"delta": first, "logprobs": logprobs}, *({"delta": delta} for delta in others)]

    def _deltas(self, changes: Sequence[Change]) -> list[Delta]:
        deltas: list[Delta] = []
        for verb, part, text in changes:
            if verb == "begun" and part.kind == "call":
                call = {"index": part.number, **_call(replace(part, texts=[]))}
                deltas.append({"tool_calls": [call]})
            elif verb == "more" and part.kind == "call":
                call = {"index": part.number, "function": {"arguments": text}}
                deltas.append({"tool_calls": [call]})
            elif verb == "more" and part.kind == "text":
                deltas.append({"content": text})
            elif verb == "more" and self._thoughts:
                deltas.append(dict.fromkeys(self._thoughts, text))
        return deltas

    def rest(self, index: int, one: Completion) -> list[Fields]:
        return [{"delta": delta} for delta in self._deltas(self._parts[index].finish(one))]


def _call(part: AnswerPart) -> dict[str, Any]:
    function = {"name": part.name, "arguments": part.text}
    return {"id": part.id, "type": "function", "function": function}


@router.post("/v1/chat/completions", response_model=None, responses=STREAMED)
async def chat_completions(body: ChatRequest, request: Request, who: Who) -> Response:
    """Answer a chat."""
    return await answer(ChatAnswer, body, request, who)
