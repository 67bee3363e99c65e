"""The target's own answers to prompts: a head learns what it will have to guess."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from random import Random
from typing import NamedTuple

from fastslow.engine.host.progress import Report, silent
from fastslow.engine.params import SamplingParams
from fastslow.output import Output
from fastslow.tools.kept import KeptWork
from fastslow.tools.prompts import Conversation

Ask = Callable[[Sequence[Conversation], Sequence[SamplingParams]], Sequence[Output]]

GREEDY = 0.7  # share of answers at temperature 0; the others are drawn at 0.7 to 1
CHUNK = 128  # prompts asked at once and kept together


class TrainText(NamedTuple):
    """Token ids of a prompt with its answer, which begins at `start`; `greedy`: not sampled."""

    tokens: list[int]
    start: int
    greedy: bool = True


def answers(
    kept: KeptWork,
    prompts: Sequence[Conversation],
    ask: Ask,
    tokens: int,
    report: Report = silent,
) -> list[TrainText]:
    """The answers to prompts, with at most `tokens` tokens each; those that are kept are not asked for again."""
    found: list[TrainText] = []
    for first in range(0, len(prompts), CHUNK):
        report(first / len(prompts), "answers")
        some = prompts[first : first + CHUNK]
        params = [_params(first + i, tokens) for i in range(len(some))]
        lists = kept.lists(f"answers-{first:07}", partial(_ids, ask, some, params))
        for prompt, answer, used in zip(lists[::2], lists[1::2], params, strict=True):
            found.append(TrainText([*prompt, *answer], len(prompt), used.temperature == 0))
    return found


def _ids(
    ask: Ask, prompts: Sequence[Conversation], params: Sequence[SamplingParams]
) -> Iterator[list[int]]:
    """Token ids of each prompt and of its answer, in turn."""
    for output in ask(prompts, params):
        yield list(output.prompt_token_ids)
        yield list(output.token_ids)


def _params(number: int, tokens: int) -> SamplingParams:
    random = Random(f"0 {number}")  # by address: the same whatever was resumed when
    heat = 0.0 if random.random() < GREEDY else random.uniform(0.7, 1.0)
    return SamplingParams(max_tokens=tokens, temperature=heat, seed=random.getrandbits(62))
