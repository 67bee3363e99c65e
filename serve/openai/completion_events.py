"""Completions as OpenAI streams them."""

from __future__ import annotations

from collections.abc import Sequence

from fastslow.output import Completion, Output, Piece
from fastslow.serve.api.errors import ApiError, openai_shape
from fastslow.serve.http.answer import PlacedPiece
from fastslow.serve.http.json_text import dumped, quoted
from fastslow.serve.http.token_table import TokenTable
from fastslow.serve.observe.answer_metrics import metrics_of
from fastslow.serve.openai.chunks import DONE, ChunkFrame, event
from fastslow.serve.openai.logprobs import TextLogprobsWriter, tokens_in
from fastslow.serve.openai.usage import FINISH, usage_of


class CompletionEvents:
    """Writes chunks of text, for each answer its end, at last the usage.

    Args:
        frame: of the chunks.
        table: of the tokens' bytes.
        n: answers to each prompt.
        logprobs: how many likeliest tokens are told with each token; None = no log-probabilities.
        sources: each chunk has its tokens, and who drafted them.
        usage: a last chunk has the usage.
        echoes: what stands in front of the answers to each prompt.
    """

    def __init__(
        self,
        frame: ChunkFrame,
        table: TokenTable,
        n: int,
        logprobs: int | None,
        sources: bool,
        usage: bool,
        echoes: Sequence[str],
    ) -> None:
        self._frame, self._table, self._n = frame, table, n
        self._sources, self._usage, self._echoes = sources, usage, echoes
        self._writers: list[TextLogprobsWriter] | None = None
        if logprobs is not None:
            self._writers = [TextLogprobsWriter(table, logprobs) for _ in range(n * len(echoes))]
        self._shown: set[int] = set()  # answers of which something was streamed
        self._outputs: list[Output] = []

    def begin(self) -> str:
        return "".join(
            self._chunk(place * self._n + i, f'"text":{quoted(echo)}', "null")
            for place, echo in enumerate(self._echoes)
            for i in range(self._n)
            if echo
        )

    async def write(self, pieces: Sequence[PlacedPiece]) -> str:
        if self._writers is not None:
            for _, piece in pieces:
                await self._table.learn(tokens_in(piece.logprobs, piece.token_ids))
        return "".join([self._piece(place, piece) for place, piece in pieces])

    def end(self) -> str:
        return (self._frame.usage(usage_of(self._outputs)) if self._usage else "") + DONE

    def failed(self, error: ApiError) -> str:
        return event(openai_shape(error)) + DONE

    def _piece(self, place: int, piece: Piece) -> str:
        text = ""
        if piece.text or piece.reasoning or piece.token_ids:
            index = place * self._n + piece.index
            self._shown.add(index)
            text = self._text(index, piece)
        if piece.output is None:
            return text
        self._outputs.append(piece.output)
        first = place * self._n
        return text + "".join(
            [self._end(first + i, one) for i, one in enumerate(piece.output.choices)]
        )

    def _text(self, index: int, piece: Piece) -> str:
        writer = None if self._writers is None else self._writers[index]
        places = None if writer is None else piece.logprobs
        if not (piece.text or piece.reasoning or places or self._sources):
            return ""
        fields = '"text":' + quoted(piece.text)
        if piece.reasoning:
            fields += ',"reasoning":' + quoted(piece.reasoning)
        if self._sources:
            fields += f',"token_ids":{dumped(piece.token_ids)},"sources":{dumped(piece.sources)}'
        if writer is None or places is None:
            return self._chunk(index, fields, "null")
        return self._chunk(index, fields, dumped(writer.write(piece.token_ids, places)))

    def _chunk(self, index: int, fields: str, logprobs: str) -> str:
        return self._frame.chunk(
            f'{{"index":{index},{fields},"logprobs":{logprobs},"finish_reason":null}}'
        )

    def _end(self, index: int, choice: Completion) -> str:
        text = ""
        if index not in self._shown and (choice.text or choice.reasoning):
            text = self._text(index, Piece(choice.text, choice.reasoning))
        finish, stop = FINISH[choice.finish_reason], dumped(choice.stop_reason)
        last = f'{{"index":{index},"text":"","logprobs":null,"finish_reason":"{finish}","stop_reason":{stop}}}'
        return text + self._frame.last(last, metrics=metrics_of(choice))
