"""`fastslow generate`: one prompt or a file of prompts, answered."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fastslow.tools.cli.answering.answer_options import GenerateCommand
from fastslow.tools.cli.options import expand_options, heed_sigterm, standard_input
from fastslow.tools.cli.screen import (
    StreamedAnswer,
    console,
    errors,
    figures,
    quiet_log,
    write_json,
)
from fastslow.tools.prompts import check_text

if TYPE_CHECKING:
    from fastslow.llm import LLM
    from fastslow.request.options import Prompt


@expand_options
def generate(options: GenerateCommand) -> None:
    """Answer one prompt, as it is made, or a file of prompts as JSON lines.

    Standard output gets the answer alone. The thought, and a last line that says what speculation did,
    go to standard error.

    Examples:
      fastslow generate "Why is the sky blue?"
      fastslow generate "Why is the sky blue?" --mode fast > answer.txt
      fastslow generate "Write a haiku." --temperature 0.8 --seed 1 --n 3
      fastslow generate "How many?" --model path/to/checkpoint --thinking-budget 200
      fastslow generate --speculation tuned.json --corpus corpus.safetensors - < question.txt
      fastslow generate --raw "Once upon a time" --groups 0 --json
      fastslow generate --file prompts.jsonl > answers.jsonl

    With --file all lines are checked first. Answers come in the order of the file, with index, text,
    reasoning, finish_reason, mode, tokens, tokens_per_second and prompt_tokens.

    Exit codes: 0; 1 the engine failed; 2 the input does not fit; 130 Ctrl-C or SIGTERM, which keep what has come.
    """
    heed_sigterm()
    quiet_log()
    if options.file is not None:
        _answer_file(options.file, options)
        return
    typed = options.prompt != "-"
    where = "PROMPT" if typed else "standard input"
    text = options.prompt or "" if typed else _standard_input()
    if not (text if options.raw else text.strip()):
        raise ValueError(f"{where} is empty: there is nothing to answer")
    check_text(text, where)
    chat: Prompt = [*options.conversation(), {"role": "user", "content": text}]
    with options.load() as llm:
        answer = _answer_often if options.sampling.n > 1 else _stream
        answer(llm, text if options.raw else chat, options)


def _standard_input() -> str:
    try:
        return standard_input().read()
    except UnicodeDecodeError as error:
        where = f"see its byte {error.start + 1}"
        raise ValueError(f"standard input is no text in UTF-8: {where}") from None


def _stream(llm: LLM, asked: Prompt, options: GenerateCommand) -> None:
    """Print one answer, as it is made; what has come until Ctrl-C is kept."""
    from fastslow.tools.cli.answering.prompt_file import record_of

    answer, output = _screen(options), None
    pieces = llm.stream(asked, **options.call(llm))
    try:
        with suppress(KeyboardInterrupt):
            for piece in pieces:
                answer.add(piece)
                output = piece.output or output
    finally:
        answer.end()
    if options.as_json and output is not None:
        write_json(record_of(output, whole=True))
    elif options.as_json:
        got = {name: getattr(answer, name) for name in ("text", "reasoning", "token_ids")}
        write_json({**got, "finish_reason": "cancelled"})
    elif output is not None:
        errors().print(figures(output, llm.max_model_len), style="dim")
    if output is None:
        raise KeyboardInterrupt


def _answer_often(llm: LLM, asked: Prompt, options: GenerateCommand) -> None:
    from fastslow.output import Piece
    from fastslow.tools.cli.answering.prompt_file import record_of

    output = llm.generate(asked, **options.call(llm))
    if options.as_json:
        write_json(record_of(output, whole=True))
        return
    for number, choice in enumerate(output.choices, 1):
        errors().print(f"answer {number} of {len(output.choices)}", style="dim")
        answer = _screen(options)
        answer.add(Piece(reasoning=choice.reasoning))
        answer.add(Piece(choice.text))
        answer.end()
        errors().print(figures(choice, llm.max_model_len), style="dim")


def _answer_file(file: Path, options: GenerateCommand) -> None:
    """All prompts of a file; exit code 1 if one failed in the engine, whose line says so."""
    from fastslow.tools.cli.answering.prompt_file import answers, read_file, record_of

    lines, failed = read_file(file, options), False
    with options.load() as llm:
        for index, output in answers(llm, lines, options):
            write_json({"index": index, **record_of(output, options.as_json)})
            failed |= any(choice.error is not None for choice in output.choices)
    if failed:
        raise typer.Exit(1)


def _screen(options: GenerateCommand) -> StreamedAnswer:
    silent = options.as_json or options.no_thinking
    return StreamedAnswer(None if options.as_json else console(), None if silent else errors())
