"""`fastslow corpus`: answers of the past, stored for suffix drafting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastslow.tools.cli.options import check_writable, expand_options

if TYPE_CHECKING:
    from fastslow.draft.suffix.documents import Documents
    from fastslow.engine.text.vocabulary import Tokenizer

MOST = 10_000_000

corpus = typer.Typer(
    name="corpus",
    help="Build and extend a corpus of answers, from which suffix drafts copy.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

AnswerFile = Annotated[
    Path, typer.Argument(help='JSON lines: {"text": ...}, {"answer": ...} or {"messages": [...]}.')
]
Model = Annotated[
    str, typer.Option(help="Checkpoint folder, GGUF file or built-in name: its tokenizer.")
]
Most = Annotated[
    int, typer.Option("--most-tokens", min=1, help="Keep this many tokens; the oldest answers go.")
]


@corpus.command()
@expand_options
def build(
    answers: AnswerFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")],
    model: Model = "smollm2-moge",
    most_tokens: Most = MOST,
) -> None:
    """Make a corpus from a file of answers, oldest first.

    Messages are best: the question is kept as well, so that an answer is recognised by it.

    Example:
      fastslow corpus build answers.jsonl -o corpus.safetensors --model smollm2
    """
    from fastslow.draft.suffix.corpus import describe
    from fastslow.draft.suffix.documents import Documents

    check_writable(out)
    if out.exists():
        try:
            describe(out)
        except ValueError:
            raise ValueError(
                f"{str(out)!r} exists and is no corpus: name another with -o"
            ) from None
    _extend(Documents(), answers, out, model, most_tokens)


@corpus.command()
@expand_options
def add(
    path: Annotated[Path, typer.Argument(help="Corpus to extend.")],
    answers: AnswerFile,
    model: Model = "smollm2-moge",
    most_tokens: Most = MOST,
) -> None:
    """Add answers to a corpus. Engines that have it open keep the old one until they are restarted.

    Example:
      fastslow corpus add corpus.safetensors today.jsonl --model smollm2
    """
    from fastslow.draft.suffix.corpus import unpack
    from fastslow.models.locate import resolve_model
    from fastslow.tools.cli.screen import quiet_log

    quiet_log()
    tokenizer = _tokenizer(resolve_model(model))
    documents = unpack(path, tokenizer.vocab())
    _extend(documents, answers, path, model, most_tokens)


@corpus.command()
@expand_options
def info(
    path: Annotated[Path, typer.Argument(help="Corpus.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Check a corpus and show what it holds."""
    from fastslow.draft.suffix.corpus import describe
    from fastslow.engine.kv.budget import format_bytes
    from fastslow.tools.cli.screen import console

    facts = describe(path)
    if as_json:
        console().out(json.dumps(facts), highlight=False)
        return
    console().print(f"answers     {facts['documents']:,}")
    console().print(f"tokens      {facts['tokens']:,}")
    console().print(f"size        {format_bytes(path.stat().st_size)}")
    console().print(f"vocabulary  {facts['vocab_size']:,} ids, {facts['vocabulary']}")
    console().print(f"format      {facts['format']}")


def _extend(documents: Documents, answers: Path, out: Path, model: str, most: int) -> None:
    """Add the answers of a file, drop the oldest, index, write."""
    from fastslow.draft.suffix.corpus import save, vocab_size
    from fastslow.draft.suffix.documents import depths
    from fastslow.engine.host.progress import bar
    from fastslow.engine.model.config import ModelConfig
    from fastslow.engine.text.templates import load_template
    from fastslow.models.locate import resolve_model
    from fastslow.tools.cli.drafting.answer_file import AnswerFile
    from fastslow.tools.cli.screen import console, quiet_log

    quiet_log()
    folder = resolve_model(model)
    tokenizer = _tokenizer(folder)
    architecture = ModelConfig.from_folder(folder).architecture
    before = len(documents)
    for one in AnswerFile(tokenizer, load_template(folder, tokenizer, architecture)).read(answers):
        documents.add(one.answer, one.prompt)
    added = len(documents) - before
    dropped = documents.trim(most)
    vocab = tokenizer.vocab()
    save(out, documents, vocab, bar(depths(vocab_size(vocab)), "Sorting"))
    console().print(
        f"{added:,} answers added, {dropped:,} of the oldest dropped: {out} holds "
        f"{len(documents):,} answers, {documents.tokens:,} tokens"
    )


def _tokenizer(folder: Path) -> Tokenizer:
    from fastslow.models.locate import find_tokenizer

    tokenizer = find_tokenizer(folder)
    if tokenizer is None:
        raise ValueError(f"{folder} has no tokenizer, which a corpus needs")
    return tokenizer
