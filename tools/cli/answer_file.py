"""A file of answers, one JSON object a line, as the token ids that the engine would emit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastslow.engine.host.progress import bar
from fastslow.engine.text.templates import ChatTemplate, Message, check_messages
from fastslow.engine.text.vocabulary import Tokenizer

FIELDS = ("text", "answer", "messages")
PROBE = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


class Said(NamedTuple):
    """One answer, its end token last, and the prompt that it answers (empty where unknown)."""

    answer: list[int]
    prompt: list[int]


class AnswerFile:
    """Reads {"text": ...}, {"answer": ...} and {"messages": [...]} lines; other fields are left.

    Of messages every assistant turn is an answer, and what stands before it its prompt.

    Args:
        tokenizer: of the model that gave, or will give, these answers.
        template: of its chat.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._end = self._end_ids()

    def read(self, path: Path) -> Iterator[Said]:
        """All answers of a file, in order, with a bar on a terminal.

        Raises:
            ValueError: the file cannot be read, or a line does not fit; the line is told.
        """
        try:
            lines = path.read_text("utf-8").split("\n")  # splitlines would cut at U+2028, too
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
        for number, line in enumerate(bar(lines, "Reading answers"), 1):
            if not line.strip():
                continue
            try:
                yield from self._said(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from None

    def _said(self, record: Any) -> Iterable[Said]:
        if not isinstance(record, Mapping) or not any(field in record for field in FIELDS):
            raise ValueError(f"needs a JSON object with one of {', '.join(FIELDS)}")
        field = next(field for field in FIELDS if field in record)
        value = record[field]
        if field == "messages":
            return self._turns(value)
        if not isinstance(value, str) or not value:
            raise ValueError(f"{field}={value!r} must be text of at least one character")
        return [Said(self._answer(value), [])]

    def _turns(self, messages: Any) -> Iterator[Said]:
        if not isinstance(messages, list):
            raise ValueError(f"messages must be a list, not {type(messages).__name__}")
        check_messages(messages)
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not turns:
            raise ValueError("messages hold no assistant turn")
        for i in turns:
            prompt = self._encode(messages[:i]) if i else []
            yield Said(self._answer(messages[i]["content"]), prompt)

    def _answer(self, text: str) -> list[int]:
        return [*self._tokenizer.encode(text, add_special=False), *self._end]

    def _encode(self, messages: list[Message], answering: bool = True) -> list[int]:
        text = self._template.render(messages, add_generation_prompt=answering)
        return self._tokenizer.encode(text, self._template.add_special)

    def _end_ids(self) -> list[int]:
        """The token that ends an answer: of several, the one that the template puts there."""
        ends = self._tokenizer.eos_ids
        if len(ends) < 2:
            return list(ends)
        rendered = self._encode(list(PROBE), answering=False)
        return [next((token for token in reversed(rendered) if token in ends), min(ends))]
