"""A chat's answer as OpenAI streams it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastslow.output import Completion, Output, Piece
from fastslow.serve.api.errors import ApiError, openai_shape
from fastslow.serve.http.answer import PlacedPiece
from fastslow.serve.http.json_text import dumped, quoted
from fastslow.serve.http.token_table import TokenTable
from fastslow.serve.observe.answer_metrics import metrics_of
from fastslow.serve.openai.chunks import DONE, ChunkFrame, event
from fastslow.serve.openai.logprobs import chat_logprobs, tokens_in
from fastslow.serve.openai.usage import FINISH, usage_of
from fastslow.serve.tool_calls.chat import Parsers
from fastslow.serve.tool_calls.openai_calls import OpenAICalls


class ChatEvents:
    """Writes chunks: the role, deltas, for each answer its end, at last the usage.

    Args:
        frame: of the chunks.
        table: of the tokens' bytes.
        n: how many answers there are.
        thoughts_as: fields of a delta that hold the thought; none = it is left out.
        logprobs: how many likeliest tokens are told with each token; None = no log-probabilities.
        sources: each delta has its tokens, their texts ("" where an answer does not show them), and who
            drafted them.
        usage: a last chunk has the usage.
        parsers: finds tool calls in the answers.
    """

    def __init__(
        self,
        frame: ChunkFrame,
        table: TokenTable,
        n: int,
        thoughts_as: Sequence[str],
        logprobs: int | None,
        sources: bool,
        usage: bool,
        parsers: Parsers | None,
    ) -> None:
        self._frame, self._table, self._n = frame, table, n
        self._thoughts = [f'"{name}":' for name in thoughts_as]
        self._logprobs, self._sources, self._usage = logprobs, sources, usage
        self._parsers: list[OpenAICalls] | None = None
        if parsers is not None:
            self._parsers = [parsers() for _ in range(n)]
        self._shown: set[int] = set()  # answers of which something was streamed

    def begin(self) -> str:
        role = '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
        return "".join(self._frame.chunk(f'{{"index":{i},{role}') for i in range(self._n))

    async def write(self, pieces: Sequence[PlacedPiece]) -> str:
        if self._logprobs is not None:
            for _, piece in pieces:
                await self._table.learn(tokens_in(piece.logprobs, piece.token_ids))
        if self._sources:
            await self._table.learn(token for _, piece in pieces for token in piece.token_ids)
        return "".join([self._piece(piece) for _, piece in pieces])

    def end(self) -> str:
        return DONE

    def failed(self, error: ApiError) -> str:
        return event(openai_shape(error)) + DONE

    def _piece(self, piece: Piece) -> str:
        text = ""
        if piece.text or piece.reasoning or piece.token_ids:
            self._shown.add(piece.index)
            text = self._deltas(piece)
        return text if piece.output is None else text + self._finish(piece.output)

    def _deltas(self, piece: Piece) -> str:
        """The chunk of a piece; two where a thought ends in it, so that no client has to tell them apart."""
        index, content, made = piece.index, piece.text, []
        if piece.reasoning and self._thoughts:
            value = quoted(piece.reasoning)
            made.append(",".join([name + value for name in self._thoughts]))
        calls: list[dict[str, Any]] = []
        if self._parsers is not None and content:
            content, calls = self._parsers[index].push(content)
        if content:
            made.append('"content":' + quoted(content))
        if calls:
            made.append('"tool_calls":' + dumped(calls))
        places = piece.logprobs if self._logprobs is not None else None
        if not made and not (places or self._sources):
            return ""
        more = logprobs = ""
        if self._sources:
            ids, table = piece.token_ids, self._table
            texts = [table.text_of(token) if table.shows(token) else "" for token in ids]
            more = f'"token_ids":{dumped(ids)},"token_texts":{dumped(texts)},"sources":{dumped(piece.sources)}'
        if places:
            top = self._logprobs or 0
            logprobs = dumped(
                {
                    "content": chat_logprobs(piece.token_ids, places, top, self._table),
                    "refusal": None,
                }
            )
        first, *others = made or ['"content":""']
        text = self._chunk(index, f"{first},{more}" if more else first, logprobs or "null")
        return text + "".join([self._chunk(index, delta, "null") for delta in others])

    def _chunk(self, index: int, delta: str, logprobs: str) -> str:
        return self._frame.chunk(
            f'{{"index":{index},"delta":{{{delta}}},"logprobs":{logprobs},"finish_reason":null}}'
        )

    def _finish(self, output: Output) -> str:
        text = "".join([self._end(i, choice) for i, choice in enumerate(output.choices)])
        return text + (self._frame.usage(usage_of([output])) if self._usage else "")

    def _end(self, index: int, choice: Completion) -> str:
        """The last chunks of an answer; all of it, where nothing of it was streamed."""
        text = ""
        if index not in self._shown and (choice.text or choice.reasoning):
            text = self._deltas(Piece(choice.text, choice.reasoning, index=index))
        finish = FINISH[choice.finish_reason]
        if self._parsers is not None:
            content, calls = self._parsers[index].finish()
            for delta in ({"content": content}, {"tool_calls": calls}):
                if any(delta.values()):
                    text += self._chunk(index, dumped(delta)[1:-1], "null")
            if self._parsers[index].calls and finish == "stop":
                finish = "tool_calls"
        stop = dumped(choice.stop_reason)
        last = f'{{"index":{index},"delta":{{}},"logprobs":null,"finish_reason":"{finish}","stop_reason":{stop}}}'
        return text + self._frame.last(last, metrics=metrics_of(choice))
