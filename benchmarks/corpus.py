"""A bot that is asked the same again: plain decoding against suffix drafts from a corpus of answers.

    python benchmarks/corpus.py FOLDER --model smollm2 --answers 2000 --quantization int8 --ask 0
    python benchmarks/corpus.py FOLDER --model smollm2 --answers 2000 --quantization int8

Answers to paraphrased customer-service questions are made once, greedily, and kept in FOLDER (a run that was stopped
goes on where it was); so is the corpus that is built from them. The first command ends there, so that the second only
measures. Questions are answered at batch 1, plain and drafted in turn: repeats are questions of the corpus;
paraphrases are on its matters, in words that it does not hold; new ones are on other matters; the prompts of other
files (--also) have nothing to do with it. Times are those of the whole call, the reading of the prompt included;
drafting is counted by itself, too, where the weights have just gone through the caches.
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from figures import options, show, write

from fastslow import LLM, SamplingParams, Speculation
from fastslow.engine.host.progress import bar
from fastslow.tools.cli.app import app
from fastslow.tools.prompts import read_prompts

SYSTEM = "You are the support assistant of a web shop. Answer the customer politely and briefly."
PRODUCTS = (
    "headphones", "coffee machine", "running shoes", "laptop", "winter jacket", "phone case",
    "office chair", "blender", "garden hose", "board game",
)  # fmt: skip
MATTERS = (
    "the {} I ordered has not arrived yet", "my {} arrived damaged", "I want to return my {}",
    "I was charged twice for the {}", "I would like to change the colour of my {}",
    "the {} stopped working after a week", "I received a {} that I did not order",
    "I want to cancel my order of a {}", "the refund for my {} has not come",
    "parts are missing from my {}", "I need an invoice for the {}",
    "my discount code did not work for the {}", "I entered the wrong address for my {}",
    "I would like to know the warranty of the {}", "the {} is the wrong size",
    "I cannot find the manual of my {}", "my tracking number for the {} does not work",
    "I want to exchange my {} for another model", "the {} was delivered to a neighbour",
    "the price of the {} fell after I bought it",
)  # fmt: skip
OTHER_MATTERS = (
    "I forgot the password of my account", "I want to work in your {} department",
    "I would like to buy forty {} for my company", "please delete all data you have about me",
    "your advertisement for the {} is misleading", "I want to pay for the {} in instalments",
    "does your shop in Rotterdam open on Sundays", "I lost my gift card after buying a {}",
    "which {} would you recommend for a student", "how do you recycle an old {}",
)  # fmt: skip
FRAMES = (
    "Hello, {}. What should I do?", "Hi there! {}. Can you help me?", "{}. Please help.",
    "Good morning, I have a problem: {}.", "Could you assist me? {}.", "{}, what happens now?",
    "I am writing because {}. What are the next steps?", "Dear support desk, {}. Please advise.",
    "It is about my last order: {}. How can this be solved?", "{}. Who can help me with that?",
)  # fmt: skip
OTHER_FRAMES = (
    "I hope that you can help: {}.", "{}. I have tried everything and do not know how to go on.",
    "A question, please. {}, so what do you suggest?", "{}. I expect an answer today.",
)  # fmt: skip
TOKENS = 128
CHUNK = 128  # answers between two looks at the disk


def questions(matters: tuple[str, ...], frames: tuple[str, ...] = FRAMES) -> list[str]:
    """Every matter of every product in every frame, shuffled in the same way each time."""
    every = itertools.product(matters, PRODUCTS, frames)
    found = dict.fromkeys(frame.format(m.format(product)) for m, product, frame in every)
    texts = [text[0].upper() + text[1:] for text in found]
    random.Random(0).shuffle(texts)
    return texts


def chat(question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]


def make_answers(llm: LLM, path: Path, count: int) -> None:
    """Answer the questions that the file has no line for yet."""
    done = len(path.read_text("utf-8").splitlines()) if path.is_file() else 0
    left = questions(MATTERS)[done:count]
    sampling = SamplingParams(max_tokens=TOKENS)
    chunks = [left[i : i + CHUNK] for i in range(0, len(left), CHUNK)]
    for chunk in bar(chunks, "Answering"):
        chats = [chat(question) for question in chunk]
        outputs = llm.generate(chats, sampling, speculation="off", progress=False)
        with path.open("a", encoding="utf-8") as file:
            for messages, output in zip(chats, outputs):
                messages.append({"role": "assistant", "content": output.text})
                file.write(json.dumps({"messages": messages}) + "\n")


def compare(llm: LLM, asked: list[str], wish: Speculation) -> dict[str, Any]:
    """Both ways to answer, in turns; sums of each: seconds of the whole call, tokens, steps and seconds of
    drafting."""
    sampling = SamplingParams(max_tokens=TOKENS)
    sums: dict[str, list[float]] = {"plain": [0.0] * 4, "suffix": [0.0] * 4}
    ratios, same = [], 0
    for turn, question in enumerate(bar(asked, "Asking")):
        answers, spent = {}, {}
        for way in ("plain", "suffix") if turn % 2 else ("suffix", "plain"):
            begun = time.perf_counter()
            out = llm.chat(chat(question), sampling, speculation=wish if way == "suffix" else "off")
            spent[way], answers[way] = time.perf_counter() - begun, out.token_ids
            m = out.metrics
            added = (spent[way], m.tokens, m.steps, m.draft_seconds)
            sums[way] = [x + y for x, y in zip(sums[way], added, strict=True)]
        ratios.append(spent["plain"] / spent["suffix"])
        same += answers["plain"] == answers["suffix"]
    return {"sums": sums, "ratios": ratios, "same": same}


def line(name: str, found: dict[str, Any]) -> list[str]:
    """One row of the table."""
    ratios, (plain, suffix) = found["ratios"], found["sums"].values()
    seconds, tokens, steps, drafting = suffix
    whole = (plain[0] / seconds, statistics.median(ratios), min(ratios))
    figures = (f"{plain[1] / plain[0]:.1f}", f"{tokens / seconds:.1f}", f"{tokens / steps:.2f}")
    same = f"{found['same']} of {len(ratios)}"
    return [name, *figures, f"{drafting / steps * 1e6:.0f}", *(f"{r:.2f}" for r in whole), same]


def main() -> None:
    parser = options(__doc__, "model", "out", "threads", quantization="int8")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--answers", type=int, default=320, help="in the corpus, at most 2000")
    parser.add_argument("--ask", type=int, default=20, help="of each kind; 0 = make the corpus")
    parser.add_argument("--nodes", type=int, help="drafted per step; default: as many as pay")
    parser.add_argument("--also", type=Path, action="append", default=[], help="JSON lines")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.folder.mkdir(parents=True, exist_ok=True)
    path, stored = args.folder / "answers.jsonl", args.folder / "corpus.safetensors"
    # what it has just answered itself would help with new questions, too
    kind = {"quantization": args.quantization, "max_running": 32, "remember": False}
    with LLM(args.model, **kind) as llm:
        make_answers(llm, path, args.answers)
        if not stored.is_file() or stored.stat().st_mtime < path.stat().st_mtime:
            build = ["corpus", "build", str(path), "-o", str(stored), "--model", args.model]
            app(args=build, standalone_mode=False)
        if not args.ask:
            return
        wish = Speculation(drafter="suffix", corpus=stored, nodes=args.nodes)
        known = random.Random(1).sample(questions(MATTERS)[: args.answers], args.ask)
        paraphrased = questions(MATTERS, OTHER_FRAMES)[: args.ask]
        new = questions(OTHER_MATTERS)[: args.ask]
        compare(llm, new[:1], wish)  # warms up
        kinds = {"repeats": known, "paraphrases": paraphrased, "new": new}
        for also in args.also:
            kinds[also.stem] = [talk[0]["content"] for talk in read_prompts(also)[: args.ask]]
        found = {name: compare(llm, asked, wish) for name, asked in kinds.items()}
    titles = ["", "plain tokens/s", "suffix tokens/s", "a step", "us of drafting a step"]
    titles += ["ratio", "median", "worst", "equal answers"]
    show(titles, [line(name, one) for name, one in found.items()])
    write(args.out, model=args.model, figures=found)


if __name__ == "__main__":
    main()
