"""Made traces, for those who have none: bots with a shared system prompt, and problems that need thought."""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random
from typing import Annotated

from pydantic import Field

from fastslow.engine.params import Params
from fastslow.tools.job_options import field
from fastslow.tools.simulate.trace import MOST_TOKENS, Milliseconds, TracedRequest

MOST_ANSWER, MOST_QUESTION = 32_768, 100_000  # tokens
PAUSE = 30.0  # mean seconds of a user between two questions
QUESTION = 60  # tokens of a question, in the median
SPREAD = 0.8  # of the logarithm of lengths
LONGEST = 3  # times the mean, that few chats are longer than

Answer = Annotated[int, Field(ge=1, le=MOST_ANSWER)]


class TraceRecipe(Params):
    """Options of a made trace. Lengths are medians of lognormal ones."""

    requests: int = field(2_000, "how many", ge=1, le=2_000_000)
    rate: float = field(4.0, "requests a second, on average", ge=0.001, le=2e4)
    deep: float = field(0.2, "share of requests that think, in mode deep", ge=0, le=1)
    deep_tokens: Answer = field(2_000, "median of deep answers, with thoughts")
    answer_tokens: Answer = field(150, "median of a chat's answers")
    bots: int = field(20, "system prompts, each shared by its chats", ge=1, le=100_000)
    system_tokens: int = field(1_000, "length of a system prompt", ge=0, le=100_000)
    turns: float = field(4.0, "mean questions of a chat", ge=1, le=1_000)
    latency_ms: Milliseconds | None = field(None, "latency target of quick requests; default: none")
    seed: int = field(0, "the same seed gives the same trace")


def make_trace(recipe: TraceRecipe) -> list[TracedRequest]:
    """A trace by arrival, at its full rate from the first second. Chats begin and deep questions come at random; the
    later turns of a chat follow after pauses. What came before the trace's zero is left out, so some of its chats are
    in their middle."""
    seconds = 1.1 * recipe.requests / recipe.rate
    while True:
        found = _requests(recipe, seconds)
        if len(found) >= recipe.requests:
            return found[: recipe.requests]
        seconds *= 1.5


def _requests(recipe: TraceRecipe, seconds: float) -> list[TracedRequest]:
    random = Random(recipe.seed)
    before = LONGEST * PAUSE * recipe.turns
    found: list[TracedRequest] = []
    chats = recipe.rate * (1 - recipe.deep) / recipe.turns
    for chat, start in enumerate(list(_arrivals(random, chats, seconds + before))):
        turns = _chat(random, recipe, start - before, chat)
        found += [turn for turn in turns if 0 <= turn.arrival <= seconds]
    for place, start in enumerate(list(_arrivals(random, recipe.rate * recipe.deep, seconds))):
        found.append(
            TracedRequest(
                arrival=round(start, 6),
                mode="deep",
                prompt_tokens=_length(random, 3 * QUESTION, MOST_QUESTION),
                answer_tokens=_length(random, recipe.deep_tokens, MOST_ANSWER),
                id=f"deep-{place}",
                deep=True,
            )
        )
    return sorted(found, key=lambda one: (one.arrival, one.id))


def _arrivals(random: Random, rate: float, until: float) -> Iterator[float]:
    now = random.expovariate(rate) if rate else math.inf
    while now <= until:
        yield now
        now += random.expovariate(rate)


def _chat(random: Random, recipe: TraceRecipe, now: float, chat: int) -> Iterator[TracedRequest]:
    """The turns of one chat. How long the answers take is not known yet: pauses are from question to question."""
    bot = min(int(random.paretovariate(1.0)) - 1, recipe.bots - 1)
    said = ((f"bot-{bot}", recipe.system_tokens),) if recipe.system_tokens else ()
    for turn in range(1_000):
        question = _length(random, QUESTION, MOST_QUESTION)
        answer = _length(random, recipe.answer_tokens, MOST_ANSWER)
        length = sum(tokens for _, tokens in said) + question
        if length > MOST_TOKENS:
            break
        id = f"chat-{chat}-{turn}"
        if now >= 0:
            yield TracedRequest(
                arrival=round(now, 6),
                mode="fast",
                prompt_tokens=length,
                answer_tokens=answer,
                id=id,
                prefix=said,
                latency_ms=recipe.latency_ms,
            )
        said = (*said, (id, question + answer))
        if random.random() >= 1 - 1 / recipe.turns:
            break
        now += random.expovariate(1 / PAUSE)


def _length(random: Random, median: int, most: int) -> int:
    return max(1, min(most, round(median * math.exp(SPREAD * random.gauss(0, 1)))))
