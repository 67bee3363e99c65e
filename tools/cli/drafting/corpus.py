"""`fastslow corpus`: answers of the past, as the token ids that the engine would emit, for suffix drafts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastslow.engine.text.messages import Turn, check_messages
from fastslow.tools.cli.options import (
    AsJson,
    ModelOptions,
    OptionFields,
    check_writable,
    command_group,
    expand_options,
)
from fastslow.tools.cli.screen import console, quiet_log, write_json
from fastslow.tools.prompts import Record, read_lines

if TYPE_CHECKING:
    from fastslow.engine.text.templates import ChatTemplate
    from fastslow.engine.text.vocabulary import Tokenizer

MOST = 10_000_000
FIELDS = ("text", "answer", "messages")
AnswerTokens = tuple[list[int], list[int]]  # an answer, its end token last; its prompt, if known
PROBE = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})

corpus = command_group(
    "corpus", "Build and extend a corpus of answers, from which suffix drafts copy."
)

Answers = Annotated[
    Path, typer.Argument(help='JSON lines: {"text": ...}, {"answer": ...} or {"messages": [...]}.')
]
Model = Annotated[ModelOptions, OptionFields("model")]  # for its tokenizer
Most = Annotated[
    int, typer.Option("--most-tokens", min=1, help="Keep this many tokens; the oldest answers go.")
]


class AnswerFile:
    """Reads {"text": ...}, {"answer": ...} and {"messages": [...]} lines; other fields are ignored. Of messages every
    assistant turn is an answer, and the turns before it are its prompt. tokenizer, template: of the model that gave,
    or will give, these answers."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._end = list(tokenizer.eos_ids)
        if len(self._end) > 1:  # the one that the template puts there
            ids = self._encode(list(PROBE), answering=False)
            self._end = [next((i for i in reversed(ids) if i in self._end), min(self._end))]

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
            return [(self._answer(value), [])]
        if not isinstance(value, list):
            raise ValueError(f"messages must be a list, not {type(value).__name__}")
        value = check_messages(value)
        turns = [i for i, message in enumerate(value) if message["role"] == "assistant"]
        if not turns:
            raise ValueError("messages hold no assistant turn")
        prompts = [self._encode(value[:i], True) if i else [] for i in turns]
        return [(self._answer(value[i]["content"]), p) for i, p in zip(turns, prompts)]

    def _answer(self, text: str) -> list[int]:
        return [*self._tokenizer.encode(text, add_special=False), *self._end]

    def _encode(self, messages: list[Turn], answering: bool) -> list[int]:
        text = self._template.render(messages, add_generation_prompt=answering)
        return self._tokenizer.encode(text, self._template.add_special)


@corpus.command()
@expand_options
def build(
    answers: Answers,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")],
    model: Model,
    most_tokens: Most = MOST,
) -> None:
    """Make a corpus from a file of answers, oldest first.

    Messages are best: the question is kept as well, so that an answer is recognised by it.

    Example:
      fastslow corpus build answers.jsonl -o corpus.safetensors --model smollm2
    """
    from fastslow.draft.suffix.corpus import describe

    check_writable(out)
    if out.exists():
        try:
            describe(out)
        except ValueError:
            raise ValueError(
                f"{str(out)!r} exists and is no corpus: name another with -o"
            ) from None
    _extend(None, answers, out, model, most_tokens)


@corpus.command()
@expand_options
def add(
    path: Annotated[Path, typer.Argument(help="Corpus to extend.")],
    answers: Answers,
    model: Model,
    most_tokens: Most = MOST,
) -> None:
    """Add answers to a corpus. Engines that have it open keep the old one until they are restarted.

    Example:
      fastslow corpus add corpus.safetensors today.jsonl --model smollm2
    """
    _extend(path, answers, path, model, most_tokens)


@corpus.command()
@expand_options
def info(
    path: Annotated[Path, typer.Argument(help="Corpus.")],
    as_json: AsJson = False,
) -> None:
    """Check a corpus and show what it holds."""
    from fastslow.draft.suffix.corpus import describe
    from fastslow.engine.kv.budget import format_bytes

    facts = describe(path)
    if as_json:
        write_json(facts)
        return
    console().print(f"answers     {facts['documents']:,}")
    console().print(f"tokens      {facts['tokens']:,}")
    console().print(f"size        {format_bytes(path.stat().st_size)}")
    console().print(f"vocabulary  {facts['vocab_size']:,} ids, {facts['vocabulary']}")
    console().print(f"format      {facts['format']}")


def _extend(old: Path | None, answers: Path, out: Path, model: ModelOptions, most: int) -> None:
    """Add the answers of a file to those of an old corpus, drop the oldest, index, write."""
    from fastslow.draft.suffix.corpus import save, unpack
    from fastslow.draft.suffix.documents import Documents
    from fastslow.engine.model.config import ModelConfig
    from fastslow.engine.text.templates import load_template
    from fastslow.models.locate import find_tokenizer, resolve_model

    quiet_log()
    folder = resolve_model(model.model, weights=False)
    tokenizer = find_tokenizer(folder)
    if tokenizer is None:
        raise ValueError(f"{folder} has no tokenizer, which a corpus needs")
    vocab = tokenizer.vocab()
    documents = Documents() if old is None else unpack(old, vocab)
    template = load_template(folder, tokenizer, ModelConfig.from_folder(folder).architecture)
    before = len(documents)
    for answer, prompt in AnswerFile(tokenizer, template).read(answers):
        documents.add(answer, prompt)
    added = len(documents) - before
    dropped = documents.trim(most)
    save(out, documents, vocab)
    console().print(
        f"{added:,} answers added, {dropped:,} of the oldest dropped: {out} holds "
        f"{len(documents):,} answers, {documents.tokens:,} tokens"
    )
