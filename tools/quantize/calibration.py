"""Calibration: prompts with the model's own answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from loguru import logger

from fastslow.engine.params import SamplingParams
from fastslow.llm import LLM
from fastslow.tools.prompts import Conversation, read_prompts

FILE = "calibration.jsonl"  # in a checkpoint's folder; the one beside this file has a few of many kinds
TOGETHER = 16  # answers made at once
ROUNDS = 8  # how often the same prompts are answered anew, each time with other chances
LONGEST = 1024  # tokens of a text


def prompts_of(path: Path | None, folder: Path) -> list[Conversation]:
    """Prompts of a file of JSON lines; without a file those of the checkpoint, as a model of few subjects should bring
    them; else a few of many kinds."""
    if path is None and (folder / FILE).is_file():
        path = folder / FILE
        logger.info("calibration with the prompts of {}", path)
    return read_prompts(path or Path(__file__).with_name(FILE))


def answered(
    llm: LLM, prompts: Sequence[Any], *, tokens: int = 160, seed: int = 0
) -> Iterator[list[int]]:
    """Token ids of prompts with answers drawn at temperature 1, for some rounds: the model's own words are what
    it will read when it runs. prompts: token ids where the model has no tokenizer. tokens: most of an
    answer; 0 = the prompts alone, once."""
    for turn in range(ROUNDS if tokens else 1):
        for first in range(0, len(prompts), TOGETHER):
            some = list(prompts[first : first + TOGETHER])
            seeds = count(seed + 7919 * (turn * len(prompts) + first))
            how = SamplingParams(max_tokens=max(tokens, 1), temperature=1.0)
            sampling = [how.model_copy(update={"seed": next(seeds)}) for _ in some]
            outputs = llm.generate(some, sampling, speculation="off", progress=False)
            for output in outputs:
                answer = list(output.token_ids) if tokens else []
                yield (list(output.prompt_token_ids) + answer)[:LONGEST]
