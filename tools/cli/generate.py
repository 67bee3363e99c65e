"""`fastslow generate`: one prompt, one answer."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastslow.tools.cli.options import INTERRUPTED, AnswerOptions, expand_options

if TYPE_CHECKING:
    from fastslow.output import Output
    from fastslow.tools.cli.screen import StreamedAnswer


@expand_options
def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads standard input.")],
    options: AnswerOptions,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text: no template.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object at the end.")] = False,
) -> None:
    """Answer one prompt, as it is made; the last line says what speculation did.

    Examples:
      fastslow generate "Why is the sky blue?"
      fastslow generate "Why is the sky blue?" --mode fast
      fastslow generate "Write a haiku." --temperature 0.8 --seed 1
      fastslow generate "How many?" --model path/to/checkpoint --thinking-budget 200
      fastslow generate --drafter ngram+self --nodes 6 - < question.txt
      fastslow generate --raw "Once upon a time" --groups 0 --json

    Exit codes: 0; 1 the engine failed; 2 the input does not fit; 130 Ctrl-C.
    """
    if raw and options.system is not None:
        raise ValueError("--system needs the chat template, which --raw leaves out")
    text = sys.stdin.read() if prompt == "-" else prompt
    from fastslow.tools.cli.screen import StreamedAnswer, console, figures, quiet_log

    quiet_log()
    answer = StreamedAnswer(shown=not as_json)
    output = None
    with options.load() as llm:
        turns = [*options.conversation(), {"role": "user", "content": text}]
        pieces = llm.stream(text if raw else turns, **options.call(llm))
        with suppress(KeyboardInterrupt):  # what has come is kept
            for piece in pieces:
                answer.add(piece)
                output = piece.output or output
    answer.end()
    if as_json:
        console().out(json.dumps(_record(answer, output), ensure_ascii=False), highlight=False)
    elif output is not None:
        console().print(figures(output.metrics), style="dim")
    if output is None:
        raise typer.Exit(INTERRUPTED)


def _record(answer: StreamedAnswer, output: Output | None) -> dict[str, Any]:
    """What is known of an answer, for programs; without `output` it was interrupted."""
    if output is not None:
        return {"prompt_tokens": len(output.prompt_token_ids), **output.choices[0].to_dict()}
    return {
        "text": answer.text,
        "reasoning": answer.reasoning,
        "token_ids": answer.token_ids,
        "finish_reason": "cancelled",
    }
