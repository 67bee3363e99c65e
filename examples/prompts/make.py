"""Prompts to train a draft head on, one JSON object a line.

    python examples/prompts/make.py --count 3000 -o prompts.jsonl

Word problems, small Python functions, questions, customer service, news; with `--model`, the model
itself also invents user turns after a short opening, and articles that other prompts ask to sum up.
A head gets good at what it is shown: `--shares summary=0.4,news=0.2,...` changes the mix.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random

from code_requests import code
from questions import maths, news, question, service, summary

from fastslow import LLM, SamplingParams

SHARES = {
    "maths": 0.22, "code": 0.22, "question": 0.13, "service": 0.05, "news": 0.05,
    "invented": 0.13, "summary": 0.20,
}  # fmt: skip
ARTICLE = (90, 800)  # tokens
USER = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n"
OPENINGS = (
    "What", "How", "Why", "Can you", "Write", "Explain", "Give me", "I", "My", "Describe", "If", "Please", "Create",
    "Write a Python function", "def", "A", "Solve", "Calculate", "Suggest", "How many", "Help me", "Here is", "There are",
)  # fmt: skip


def invented(llm: LLM, count: int, seed: int) -> list[str]:
    """User turns that the model continues."""
    random = Random(seed)
    starts = [random.choice(OPENINGS) for _ in range(count)]
    sampling = [
        SamplingParams(max_tokens=90, temperature=1.0, min_p=0.05, seed=seed + i)
        for i in range(count)
    ]
    asked = [USER + start for start in starts]
    outputs = llm.generate(asked, sampling, speculation="off", allow_special=True)
    return [f"{start}{output.text}".strip() for start, output in zip(starts, outputs)]


def articles(llm: LLM, count: int, seed: int) -> list[str]:
    """Articles about drawn topics, from a paragraph to a page."""
    random = Random(seed)
    talks = [[{"role": "user", "content": news(random)}] for _ in range(count)]
    sizes = [random.randint(*ARTICLE) for _ in range(count)]
    sampling = [
        SamplingParams(max_tokens=size, temperature=0.9, min_p=0.05, seed=seed + i)
        for i, size in enumerate(sizes)
    ]
    return [output.text for output in llm.generate(talks, sampling, speculation="off")]


def shares_of(text: str) -> dict[str, float]:
    """`kind=weight,...` as a table."""
    shares = {}
    for part in text.split(","):
        kind, _, weight = part.partition("=")
        if kind not in SHARES:
            raise argparse.ArgumentTypeError(f"{kind!r} is not one of {', '.join(SHARES)}")
        try:
            shares[kind] = float(weight)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r} must be {kind}=NUMBER") from None
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="also prompts that this model writes")
    parser.add_argument("--shares", type=shares_of, default=SHARES, metavar="KIND=WEIGHT,...")
    parser.add_argument("--quantization", default="int8", help="of that model")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    random = Random(args.seed)
    written_by_model = ("invented", "summary")
    shares = {k: v for k, v in args.shares.items() if args.model or k not in written_by_model}
    kinds = random.choices(list(shares), list(shares.values()), k=args.count)
    written: dict[str, list[str]] = {"invented": [], "summary": []}
    if args.model:
        with LLM(args.model, quantization=args.quantization) as llm:
            written["invented"] = invented(llm, kinds.count("invented"), args.seed)
            texts = articles(llm, kinds.count("summary"), args.seed)
            written["summary"] = [summary(random, text) for text in texts]
    makers = {"maths": maths, "code": code, "question": question, "service": service, "news": news}
    with args.out.open("w", encoding="utf-8") as file:
        for kind in kinds:
            text = makers[kind](random) if kind in makers else written[kind].pop()
            file.write(json.dumps({"category": kind, "prompt": text}) + "\n")


if __name__ == "__main__":
    main()
