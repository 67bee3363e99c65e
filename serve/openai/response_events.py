"""An answer as /v1/responses streams it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastslow.serve.api.answer_parts import AnswerPart, AnswerParts, Change
from fastslow.serve.api.errors import ApiError
from fastslow.serve.http.answer import PlacedPiece
from fastslow.serve.http.json_text import named_event
from fastslow.serve.openai.response_object import (
    content_of,
    ended,
    failed,
    item_id,
    item_of,
    under_way,
)

TEXTS = {
    "thought": "response.reasoning_text",
    "text": "response.output_text",
    "call": "response.function_call_arguments",
}


class ResponseEvents:
    """Writes the response's start, its items with their deltas, and the whole of it.

    Args:
        head: fields of the response.
        parts: of the answer.
    """

    def __init__(self, head: dict[str, Any], parts: AnswerParts) -> None:
        self._head, self._parts = head, parts
        self._number = 0

    def begin(self) -> str:
        begun = under_way(self._head)
        return "".join(
            self._event(f"response.{name}", response=begun) for name in ("created", "in_progress")
        )

    async def write(self, pieces: Sequence[PlacedPiece]) -> str:
        text = ""
        for _, piece in pieces:
            text += self._changed(self._parts.push(piece))
            if (output := piece.output) is None:
                continue
            changes = self._parts.finish(output.choices[0])
            whole = ended(self._head, self._parts, output)
            text += self._changed(changes[:-1])
            if changes:  # the last one ends the last item
                text += self._change(*changes[-1], status=whole["status"])
            text += self._event(f"response.{whole['status']}", response=whole)
        return text

    def end(self) -> str:
        return ""

    def failed(self, error: ApiError) -> str:
        return self._event("response.failed", response=failed(self._head, self._parts, error))

    def _changed(self, changes: Sequence[Change]) -> str:
        return "".join([self._change(*change) for change in changes])

    def _change(self, verb: str, part: AnswerPart, text: str, status: str = "completed") -> str:
        """`status`: of an item that ends."""
        match verb:
            case "begun":
                empty = AnswerPart(part.kind, part.index, part.id, part.name, part.key)
                item = item_of(empty, "in_progress")
                made = self._event("response.output_item.added", output_index=part.index, item=item)
                return made + self._content("added", empty)
            case "more":
                more: dict[str, Any] = {} if part.kind != "text" else {"logprobs": []}
                return self._text("delta", part, delta=text, **more)
            case _:
                return self._done(part, status)

    def _done(self, part: AnswerPart, status: str) -> str:
        match part.kind:
            case "call":
                made = self._text("done", part, arguments=part.text)
            case "text":
                made = self._text("done", part, text=part.text, logprobs=[])
            case "thought":
                made = self._text("done", part, text=part.text)
        made += self._content("done", part)
        item = item_of(part, status)
        return made + self._event("response.output_item.done", output_index=part.index, item=item)

    def _text(self, name: str, part: AnswerPart, **fields: Any) -> str:
        place = self._place(part)
        return self._event(f"{TEXTS[part.kind]}.{name}", **place, **fields)

    def _content(self, name: str, part: AnswerPart) -> str:
        """A call has none."""
        if part.kind == "call":
            return ""
        content = content_of(part)
        return self._event(f"response.content_part.{name}", **self._place(part), part=content)

    @staticmethod
    def _place(part: AnswerPart) -> dict[str, Any]:
        place: dict[str, Any] = {"item_id": item_id(part), "output_index": part.index}
        return place if part.kind == "call" else {**place, "content_index": 0}

    def _event(self, name: str, **fields: Any) -> str:
        self._number += 1
        return named_event(name, {"type": name, "sequence_number": self._number - 1, **fields})
