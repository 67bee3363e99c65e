"""Perplexity of a dense model and of its MoGE version at each number of groups.

python benchmarks/perplexity.py --text articles.jsonl --text book.txt --groups 8 --groups 2
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fastslow import LLM, SamplingParams
from fastslow.engine.params import Mode
from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.engine.text.vocabulary import Tokenizer
from fastslow.models.locate import resolve_model
from fastslow.tools.convert.texts import documents

ALL = (8, 6, 4, 3, 2, 1, 0)


def windows(path: Path, tokenizer: Tokenizer, length: int, count: int) -> list[list[int]]:
    """The first `count` windows of `length` tokens, documents joined by blank lines.

    A document that is long enough fills windows of its own; shorter ones are joined.
    """
    found: list[list[int]] = []
    room: list[int] = []
    for text in documents(path, shortest=1):
        room += tokenizer.encode(text + "\n\n", add_special=False)
        if len(room) >= length:
            found.append(room[:length])
            room = []
        if len(found) == count:
            break
    if not found:
        raise ValueError(f"text {path} must hold {length} tokens, got {len(room)}")
    return found


def perplexity(llm: LLM, rows: list[list[int]], groups: int | None) -> float:
    """exp of the mean negative log-likelihood of every token after a row's first.

    Args:
        llm: the model.
        rows: token ids.
        groups: routed groups to run; None for all (and for a dense model).
    """
    sampling = SamplingParams(max_tokens=1, prompt_logprobs=0)
    outputs = llm.generate(
        rows, [sampling] * len(rows), mode=Mode(groups=groups, thinking="off"), speculation="off"
    )
    nats, count = 0.0, 0
    for row, output in zip(rows, outputs, strict=True):
        assert output.prompt_logprobs is not None
        for token, scores in itertools.islice(zip(row, output.prompt_logprobs), 1, None):
            assert scores is not None
            nats -= scores[token]
            count += 1
    return math.exp(nats / count)


def main(
    text: Annotated[list[Path], typer.Option(help=".txt, .html or .jsonl; may be repeated.")],
    dense: Annotated[str, typer.Option(help="Dense model: folder or built-in.")] = "smollm2",
    model: Annotated[str, typer.Option(help="MoGE model: folder or built-in.")] = "smollm2-moge",
    groups: Annotated[list[int], typer.Option(help="Numbers of groups to run.")] = list(ALL),  # noqa: B006
    length: Annotated[int, typer.Option(help="Tokens of a window.")] = 512,
    count: Annotated[int, typer.Option(help="Windows of each text.")] = 24,
) -> None:
    """Prints one line for each text: the dense perplexity, then each setting's and its ratio."""
    sources = [Path(path) for path in text]
    settings = {"dense": (dense, None)} | {f"{g} groups": (model, g) for g in groups}
    figures: dict[Path, dict[str, float]] = {path: {} for path in sources}
    tokenizer = load_tokenizer(resolve_model(dense))
    for name in (dense, model):
        with LLM(name) as llm:
            for path in sources:
                rows = windows(path, tokenizer, length, count)
                for label, (owner, run) in settings.items():
                    if owner == name:
                        figures[path][label] = perplexity(llm, rows, run)
    table = Table("text", *settings)
    for path, row in figures.items():
        cells = [f"{value:.2f} ({value / row['dense']:.3f})" for value in row.values()]
        table.add_row(path.name, *cells)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
