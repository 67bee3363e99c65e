"""Perplexity of a dense model and of its MoGE version at each number of groups.

    python benchmarks/perplexity.py --text articles.txt --text book.txt --groups 8 --groups 2

Texts are plain text files. In brackets: times the dense model's perplexity.
"""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from statistics import fmean

from figures import options, show, write

from fastslow import LLM, SamplingParams
from fastslow.engine.params import Mode
from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.engine.text.vocabulary import Tokenizer
from fastslow.models.locate import resolve_model

ALL = (8, 6, 4, 3, 2, 1, 0)


def windows(path: Path, tokenizer: Tokenizer, length: int, count: int) -> list[list[int]]:
    """The first `count` windows of `length` tokens."""
    ids = tokenizer.encode(path.read_text("utf-8"), add_special=False)
    if len(ids) < length:
        raise ValueError(f"text {path} must hold {length} tokens, got {len(ids)}")
    starts = range(0, len(ids) - length + 1, length)
    return [ids[start : start + length] for start in starts[:count]]


def perplexity(llm: LLM, rows: list[list[int]], groups: int | None) -> float:
    """exp of the mean negative log-likelihood of every token after a row's first; groups: routed groups that run,
    None for all (and for a dense model)."""
    sampling = SamplingParams(max_tokens=1, prompt_logprobs=0)
    mode = Mode(groups=groups, thinking="off")
    outputs = llm.generate(rows, sampling, mode=mode, speculation="off")
    pairs = (zip(row, out.prompt_logprobs or ()) for row, out in zip(rows, outputs, strict=True))
    nats = [-scores[token] for pair in pairs for token, scores in pair if scores is not None]
    return math.exp(fmean(nats))


def main() -> None:
    parser = options(__doc__, "out", model="smollm2-moge")
    parser.add_argument("--dense", default="smollm2", help="the dense model")
    parser.add_argument("--text", type=Path, action="append", required=True, metavar="FILE")
    parser.add_argument("--groups", type=int, action="append", help="default: 8, 6, 4, 3, 2, 1, 0")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--count", type=int, default=24, help="windows of each text")
    args = parser.parse_args()
    settings: dict[str, tuple[str, int | None]] = {"dense": (args.dense, None)}
    settings |= {f"{g} groups": (args.model, g) for g in args.groups or ALL}
    figures: dict[str, dict[str, float]] = {path.name: {} for path in args.text}
    tokenizer = load_tokenizer(resolve_model(args.dense))
    rows = {path.name: windows(path, tokenizer, args.length, args.count) for path in args.text}
    for name in (args.dense, args.model):
        with LLM(name) as llm:
            for (label, (owner, groups)), text in product(settings.items(), rows):
                if owner == name:
                    figures[text][label] = perplexity(llm, rows[text], groups)
    cells = [
        [name, *(f"{value:.2f} ({value / row['dense']:.3f})" for value in row.values())]
        for name, row in figures.items()
    ]
    show(["text", *settings], cells)
    write(args.out, model=args.model, dense=args.dense, figures=figures)


if __name__ == "__main__":
    main()
