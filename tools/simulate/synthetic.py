"""Made traces, for those who have none: bots with a shared system prompt, and problems that need thought."""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random
from typing import Annotated

from pydantic import Field

from fastslow.engine.params import Params
from fastslow.tools.simulate.trace import MOST_TOKENS, Milliseconds, TracedRequest

MOST_ANSWER, MOST_QUESTION = 32_768, 100_000  # tokens
PAUSE = 30.0  # mean seconds of a user between two questions
QUESTION = 60  # tokens of a question, in the median
SPREAD = 0.8  # of the logarithm of lengths
LONGEST = 3  # times the mean, that few chats are longer than

Answer = Annotated[int, Field(ge=1, le=MOST_ANSWER)]


class TraceRecipe(Params):
    """What a made trace is like. Lengths are medians of lognormal ones."""

    requests: int = Field(default=2_000, ge=1, le=2_000_000, description="how many")
    rate: float = Field(default=4.0, ge=0.001, le=2e4, description="requests a second, on average")
    deep: float = Field(
        default=0.2, ge=0, le=1, description="share of requests that think, in mode deep"
    )
    deep_tokens: Answer = Field(default=2_000, description="median of deep answers, with thoughts")
    answer_tokens: Answer = Field(default=150, description="median of a chat's answers")
    bots: int = Field(
        default=20, ge=1, le=100_000, description="system prompts, each shared by its chats"
    )
    system_tokens: int = Field(
        default=1_000, ge=0, le=100_000, description="length of a system prompt"
    )
    turns: float = Field(default=4.0, ge=1, le=1_000, description="mean questions of a chat")
    latency_ms: Milliseconds | None = Field(
        default=None, description="latency target of quick requests; default: none"
    )
    seed: int = Field(default=0, description="the same seed gives the same trace")


def make_trace(recipe: TraceRecipe) -> list[TracedRequest]:
    """A trace by arrival, at its full rate from the first second.

    Chats begin and deep questions come at random; the later turns of a chat follow after pauses. What came
    before the trace's zero is left out, so some of its chats are in their middle.
    """
    seconds = 1.1 * recipe.requests / recipe.rate
    while True:
        found = _requests(recipe, seconds)
        if len(found) >= recipe.requests:
            return found[: recipe.requests]
        seconds *= 1.5


def _requests(recipe: TraceRecipe, seconds: float) -> list[TracedRequest]:
    """All requests of some seconds."""
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
    """Poisson arrivals."""
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
