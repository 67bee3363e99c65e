"""Prompts to train a draft head on, one JSON object a line.

    python examples/prompts/make.py --count 3000 -o prompts.jsonl
    python examples/prompts/make.py --count 3000 --model smollm2 -o prompts.jsonl

Word problems, small Python functions, questions, customer service, news: patterns filled from `words.json`. With
`--model`, two thirds are written by that model: it goes on with the first words of a user's turn (arXiv 2406.08464),
of chat, code, extraction, translation, roleplay, writing, articles to summarise. Its kinds are many more than patterns
have. A head gets good at what it is shown, so your own prompts are better still.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from fastslow import LLM, SamplingParams

FILE: dict[str, Any] = json.loads(Path(__file__).with_name("words.json").read_text("utf-8"))
OPENINGS: dict[str, Any] = FILE.pop("openings")  # of what a model goes on with
WORDS: dict[str, list[str]] = FILE
# Parts of a sentence about numbers, and what each computes for the examples in a docstring.
FOLD: dict[str, Callable[[list[int]], Any]] = {
    "Return the sum of the": sum,
    "Return a list of the": list,
    "Return the largest of the": lambda x: max(x, default=None),
    "Count the": len,
    "Return the sorted list of the": sorted,
    "Return, in reverse order, the": lambda x: x[::-1],
    "Return the average of the": lambda x: sum(x) / len(x) if x else None,
}
TURN: dict[str, Callable[[int], int]] = {
    "squares of the": lambda n: n * n,
    "doubles of the": lambda n: 2 * n,
    "absolute values of the": abs,
    "last digits of the": lambda n: abs(n) % 10,
}
KEEP: dict[str, Callable[[int], bool]] = {
    "even numbers": lambda n: n % 2 == 0,
    "positive numbers": lambda n: n > 0,
    "multiples of three": lambda n: n % 3 == 0,
    "prime numbers": lambda n: n > 1 and all(n % d for d in range(2, n)),
    "numbers": lambda n: True,
}


def maths(random: Random) -> str:
    a, b, c = random.sample(WORDS["names"], 3)
    place = random.choice(WORDS["places"])
    pattern = random.choice(WORDS["exercises" if random.random() < 0.12 else "problems"])
    text = pattern.format(
        a=a, b=b, c=c, t=random.choice(WORDS["things"]), p1=place[0].upper() + place[1:],
        x=random.randint(15, 95), y=random.randint(6, 40), z=random.randint(2, 14),
        s=random.randint(3, 12), k=random.randint(2, 5), d=random.randint(2, 7),
        big=random.randint(8, 60) * 10, pct=random.choice((10, 15, 20, 25, 30, 40, 50, 60, 75)),
    )  # fmt: skip
    return text + random.choice(WORDS["problem_ends"])


def code(random: Random) -> str:
    """A function in plain words, or a signature and a docstring whose examples are computed."""
    if random.random() < 0.5:
        return random.choice(WORDS["requests"]).format(random.choice(WORDS["functions"]))
    fold, turn, keep = (random.choice(list(parts)) for parts in (FOLD, TURN, KEEP))
    shown = ""
    for _ in range(random.randint(1, 4)):
        numbers = [random.randint(-15, 40) for _ in range(random.randint(2, 6))]
        result = FOLD[fold]([TURN[turn](n) for n in numbers if KEEP[keep](n)])
        shown += f"    >>> solve({numbers})\n    {result!r}\n"
    sentence = f"{fold} {turn} {keep} in the list."
    body = f'def solve(numbers: list):\n    """{sentence}\n\n{shown}    """\n'
    return random.choice(WORDS["completions"]) + body


def question(random: Random) -> str:
    t, u = random.sample(WORDS["topics"], 2)
    return random.choice(WORDS["questions"]).format(t=t, u=u, p=random.choice(WORDS["countries"]))


def service(random: Random) -> str:
    goods, number = random.choice(WORDS["goods"]), random.randint(2, 30)
    order = random.randint(10_000, 99_999)
    return random.choice(WORDS["service"]).format(g=goods, n=number, o=order)


def news(random: Random) -> str:
    fields = {"t": "topics", "e": "events", "p": "countries", "n": "names"}
    picked = {field: random.choice(WORDS[words]) for field, words in fields.items()}
    return random.choice(WORDS["news"]).format(**picked)


MAKERS = {maths: 0.32, code: 0.32, question: 0.2, service: 0.08, news: 0.08}  # shares
PATTERNS = 0.36  # share of patterns beside what a model writes
FIELD = re.compile(r"{(\w+)}")


def opening(random: Random) -> tuple[str, str, int]:
    """A kind, the first words of a user's turn, and how many tokens may follow them."""
    (kind,) = random.choices(list(OPENINGS), [one["share"] for one in OPENINGS.values()])
    words = random.choice(OPENINGS[kind]["openings"])
    text = FIELD.sub(lambda found: random.choice(WORDS[found[1]]), words)
    return kind, text, OPENINGS[kind]["tokens"]


def invented(llm: LLM, count: int, random: Random) -> list[dict[str, str]]:
    """Prompts whose first words are given and whose rest the model draws."""
    # What a template puts after a user's turn does not depend on the turn.
    one, two = (llm.tokenize([{"role": "user", "content": text}])[::-1] for text in "ab")
    tail = next(n for n, pair in enumerate(zip(one, two)) if pair[0] != pair[1])
    begun = [opening(random) for _ in range(count)]
    whole = [llm.tokenize([{"role": "user", "content": text}]) for _, text, _ in begun]
    turns = [tokens[: len(tokens) - tail] for tokens in whole]
    params = [
        SamplingParams(
            max_tokens=most,
            temperature=random.choice((0.7, 0.9, 1.0)),
            top_p=0.95,
            seed=random.getrandbits(62),
        )
        for _, _, most in begun
    ]
    outputs = llm.generate(turns, params)
    pairs = zip(begun, outputs, strict=True)
    return [{"category": kind, "prompt": text + rest.text} for (kind, text, _), rest in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--model", help="writes two thirds of the prompts")
    args = parser.parse_args()
    random = Random(args.seed)
    made = args.count if args.model is None else round(PATTERNS * args.count)
    makers = random.choices(list(MAKERS), list(MAKERS.values()), k=made)
    prompts = [{"category": make.__name__, "prompt": make(random)} for make in makers]
    if args.model is not None:
        with LLM(args.model, max_running=32) as llm:
            prompts += invented(llm, args.count - made, random)
        random.shuffle(prompts)
    with args.out.open("w", encoding="utf-8") as file:
        for prompt in prompts:
            if prompt["prompt"].strip():
                file.write(json.dumps(prompt) + "\n")


if __name__ == "__main__":
    main()
