"""Texts to calibrate with: prompts and what the model itself answers to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from loguru import logger

from fastslow.engine.llm import LLM
from fastslow.engine.params import SamplingParams
from fastslow.engine.quant.openers import OPENERS
from fastslow.engine.text.message import Message
from fastslow.engine.tune.prompts import read_prompts

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
