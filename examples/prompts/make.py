"""Prompts to train a draft head on, one JSON object a line.

    python examples/prompts/make.py --count 3000 -o prompts.jsonl

Word problems, small Python functions, questions, customer service, news. A head gets good at what it is shown:
`--shares code=0.4,news=0.2,...` changes the mix.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random

from code_requests import code
from questions import maths, news, question, service

MAKERS = {"maths": maths, "code": code, "question": question, "service": service, "news": news}
SHARES = {"maths": 0.32, "code": 0.32, "question": 0.2, "service": 0.08, "news": 0.08}


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
    parser.add_argument("--shares", type=shares_of, default=SHARES, metavar="KIND=WEIGHT,...")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    random = Random(args.seed)
    kinds = random.choices(list(args.shares), list(args.shares.values()), k=args.count)
    with args.out.open("w", encoding="utf-8") as file:
        for kind in kinds:
            file.write(json.dumps({"category": kind, "prompt": MAKERS[kind](random)}) + "\n")


if __name__ == "__main__":
    main()
