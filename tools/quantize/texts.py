"""Texts to calibrate with: prompts and what the model itself answers to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from loguru import logger

from fastslow.engine.params import SamplingParams
from fastslow.engine.text.templates import Message
from fastslow.llm import LLM
from fastslow.tools.tune.prompts import read_prompts

OPENERS = (
    "Why do the leaves of some trees turn red in autumn?",
    "Write a short story about a lighthouse keeper who finds a letter.",
    "Write a Python function that merges two sorted lists.",
    "A train leaves at 9:40 and arrives at 13:05. How long does it travel? Show each step.",
    "Translate into French, German and Spanish: The library opens at eight.",
    "Explain to a child how a bicycle stays upright.",
    "List ten animals that live in deserts, with one fact about each.",
    "What is 37 times 46? Work it out step by step.",
    "Summarise the causes of the French Revolution in one paragraph.",
    "Write SQL that counts the orders of each customer in the last month.",
    "Give me a recipe for lentil soup, with amounts for four people.",
    "Compare renting and buying a flat for someone who may move in three years.",
    "Write a polite e-mail asking a supplier why a delivery is late.",
    "Solve for x: 3x + 7 = 2x + 19.",
    "Describe the water cycle, then make a short quiz about it.",
    "为什么天空是蓝色的？请简单解释。",
    "写一首关于秋天的短诗。",
    "请把这句话翻译成英文：我们明天早上九点开会。",
    "用三句话介绍一下长城的历史。",
    "小明有二十四个苹果，平均分给六个朋友，每人几个？",
    "Write a JavaScript function that debounces another function, and explain it.",
    "What should I look at before I buy a used car?",
    "Name the planets in order and say how long a year is on each.",
    "Write a dialogue between a doctor and a patient with a cough.",
    "Turn this into bullet points: we need more staff, a larger office and a better website.",
    "What is the difference between a virus and a bacterium?",
    "Write a limerick about a cat that plays chess.",
    "If five machines make five parts in five minutes, how long do a hundred take for a hundred?",
    "Explain what recursion is, with an example in C.",
    "Plan a day in Lisbon for a family with two small children.",
    "What were the main inventions of the nineteenth century?",
    "Correct the grammar: He don't know where is the keys.",
)


OWN = "calibration.jsonl"  # in a checkpoint's folder
TOGETHER = 16  # answers made at once
ROUNDS = 8  # how often the same prompts are answered anew, each time with other chances
LONGEST = 1024  # tokens of a text


def prompts_of(path: Path | None, folder: Path) -> list[list[Message]]:
    """Those of a file of JSON lines; without one those that the checkpoint brings, as a model of few
    subjects should; else a few of many kinds."""
    own = folder / OWN
    if path is None and own.is_file():
        logger.info("calibration with the prompts of {}", own)
        path = own
    if path is not None:
        return read_prompts(path)
    return [[{"role": "user", "content": text}] for text in OPENERS]


def answered(
    llm: LLM, prompts: Sequence[Any], *, tokens: int = 160, seed: int = 0
) -> Iterator[list[int]]:
    """Token ids of prompts with answers drawn at temperature 1, without end for some rounds.

    The model's own words are what it will have to read when it runs; what it was trained on need
    not be known.

    Args:
        llm: the float model.
        prompts: conversations; token ids where the model has no tokenizer.
        tokens: most of an answer; 0 = the prompts alone, once.
        seed: of the answers.
    """
    for turn in range(ROUNDS if tokens else 1):
        for first in range(0, len(prompts), TOGETHER):
            some = list(prompts[first : first + TOGETHER])
            seeds = count(seed + 7919 * (turn * len(prompts) + first))
            sampling = [
                SamplingParams(max_tokens=max(tokens, 1), temperature=1.0, seed=next(seeds))
                for _ in some
            ]
            outputs = llm.generate(some, sampling, speculation="off", progress=False)
            for output in outputs:
                answer = list(output.token_ids) if tokens else []
                yield (list(output.prompt_token_ids) + answer)[:LONGEST]
