"""A file of answers, one JSON object a line, as the token ids that the engine would emit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fastslow.engine.text.messages import Turn, check_messages
from fastslow.engine.text.templates import ChatTemplate
from fastslow.engine.text.vocabulary import Tokenizer
from fastslow.tools.prompts import Record, read_lines

FIELDS = ("text", "answer", "messages")
PROBE = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


class AnswerTokens(NamedTuple):
    """One answer, its end token last, and the prompt that it answers (empty where unknown)."""

    answer: list[int]
    prompt: list[int]


class AnswerFile:
    """Reads {"text": ...}, {"answer": ...} and {"messages": [...]} lines; other fields are ignored.

    Of messages every assistant turn is an answer, and what stands before it its prompt. tokenizer,
    template: of the model that gave, or will give, these answers.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._end = self._end_ids()

    def read(self, path: Path) -> Iterator[AnswerTokens]:
        """All answers of a file, in order. ValueError: it cannot be read, or a line does not fit."""
        for answers in read_lines(path, "answers", self._answers):
            yield from answers

    def _answers(self, record: Record) -> list[AnswerTokens]:
        field = next((name for name in FIELDS if name in record), None)
        if field is None:
            raise ValueError(f"needs a JSON object with one of {', '.join(FIELDS)}")
        value = record[field]
        if field != "messages":
            if not isinstance(value, str) or not value:
                raise ValueError(f"{field}={value!r} must be text of at least one character")
            return [AnswerTokens(self._answer(value), [])]
        if not isinstance(value, list):
            raise ValueError(f"messages must be a list, not {type(value).__name__}")
        value = check_messages(value)
        turns = [i for i, message in enumerate(value) if message["role"] == "assistant"]
        if not turns:
            raise ValueError("messages hold no assistant turn")
        prompts = [self._encode(value[:i], True) if i else [] for i in turns]
        return [AnswerTokens(self._answer(value[i]["content"]), p) for i, p in zip(turns, prompts)]

    def _answer(self, text: str) -> list[int]:
        return [*self._tokenizer.encode(text, add_special=False), *self._end]

    def _encode(self, messages: list[Turn], answering: bool) -> list[int]:
        text = self._template.render(messages, add_generation_prompt=answering)
        return self._tokenizer.encode(text, self._template.add_special)

    def _end_ids(self) -> list[int]:
        """The token that ends an answer: of several, the one that the template puts there."""
        ends = self._tokenizer.eos_ids
        if len(ends) < 2:
            return list(ends)
        rendered = self._encode(list(PROBE), answering=False)
        return [next((token for token in reversed(rendered) if token in ends), min(ends))]
