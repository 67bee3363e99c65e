"""Made traces, for those who have none: bots with a shared system prompt, and problems that need thought."""

from __future__ import annotations

import math
from random import Random
from typing import Annotated, Self

from pydantic import Field, model_validator

from fastslow.engine.params import Params
from fastslow.tools.simulate.trace import LATENCY_MS, MOST_TOKENS, TracedRequest

MOST_ANSWER, MOST_QUESTION = 32_768, 100_000  # tokens
MOST_SECONDS = 1e8  # of a made trace: three years
MOST_EARLIER = 2e6  # chats that began before its zero
SPREAD = 0.8  # of the logarithm of lengths
LONGEST = 3  # times the mean, that few chats are longer than

Answer = Annotated[int, Field(ge=1, le=MOST_ANSWER)]


class TraceRecipe(Params):
    """What a made trace is like. Lengths are medians of lognormal ones.

    Attributes:
        requests: how many.
        rate: requests a second, on average.
        deep: share of the requests that think: single questions without a target, in mode "deep".
        bots: system prompts, each shared by its chats; some are used more than others.
        system_tokens: of a system prompt.
        turns: mean questions of a chat, each of which repeats what was said before.
        think_seconds: mean pause of a user between two questions.
        question_tokens, answer_tokens: of a chat's turn.
        deep_tokens: of a deep answer, thought included.
        latency_ms: target of quick requests; None = none.
        seed: the same one gives the same trace.
    """

    requests: Annotated[int, Field(ge=1, le=2_000_000)] = 2_000
    rate: Annotated[float, Field(ge=1e-6, le=1e6)] = 4.0
    deep: Annotated[float, Field(ge=0, le=1)] = 0.2
    bots: Annotated[int, Field(ge=1, le=100_000)] = 20
    system_tokens: Annotated[int, Field(ge=0, le=100_000)] = 1_000
    turns: Annotated[float, Field(ge=1, le=1_000)] = 4.0
    think_seconds: Annotated[float, Field(ge=0, le=1e6)] = 30.0
    question_tokens: Annotated[int, Field(ge=1, le=MOST_QUESTION)] = 60
    answer_tokens: Answer = 150
    deep_tokens: Answer = 2_000
    latency_ms: Annotated[float, Field(ge=LATENCY_MS[0], le=LATENCY_MS[1])] | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _can_be_made(self) -> Self:
        if self.requests / self.rate > MOST_SECONDS:
            raise ValueError(
                f"rate={self.rate:g} must be at least {self.requests / MOST_SECONDS:g}: "
                f"{self.requests} requests would take more than {MOST_SECONDS:g} s"
            )
        if LONGEST * self.rate * self.think_seconds > MOST_EARLIER:
            raise ValueError(
                f"think_seconds={self.think_seconds:g} must be at most "
                f"{MOST_EARLIER / LONGEST / self.rate:g} at rate={self.rate:g}: too many chats would "
                "be under way at once"
            )
        return self


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
    before = LONGEST * recipe.think_seconds * recipe.turns
    found: list[TracedRequest] = []
    chats = recipe.rate * (1 - recipe.deep) / recipe.turns
    for chat, start in enumerate(_arrivals(random, chats, seconds + before)):
        found += _chat(random, recipe, start - before, chat, seconds)
    for place, start in enumerate(_arrivals(random, recipe.rate * recipe.deep, seconds)):
        found.append(
            TracedRequest(
                arrival=round(start, 6),
                mode="deep",
                prompt_tokens=_length(random, 3 * recipe.question_tokens, MOST_QUESTION),
                answer_tokens=_length(random, recipe.deep_tokens, MOST_ANSWER),
                id=f"deep-{place}",
                deep=True,
            )
        )
    return sorted(found, key=lambda one: (one.arrival, one.id))


def _arrivals(random: Random, rate: float, until: float) -> list[float]:
    """Poisson arrivals."""
    found: list[float] = []
    now = random.expovariate(rate) if rate else math.inf
    while now <= until:
        found.append(now)
        now += random.expovariate(rate)
    return found


def _chat(
    random: Random, recipe: TraceRecipe, start: float, chat: int, until: float
) -> list[TracedRequest]:
    """The turns of one chat. How long the answers take is not known yet: pauses are from question to question."""
    bot = min(int(random.paretovariate(1.0)) - 1, recipe.bots - 1)
    said = ((f"bot-{bot}", recipe.system_tokens),) if recipe.system_tokens else ()
    turns, now = [], start
    for turn in range(1_000):
        question = _length(random, recipe.question_tokens, MOST_QUESTION)
        answer = _length(random, recipe.answer_tokens, MOST_ANSWER)
        length = sum(tokens for _, tokens in said) + question
        if length > MOST_TOKENS:
            break
        id = f"chat-{chat}-{turn}"
        if 0 <= now <= until:
            turns.append(
                TracedRequest(
                    arrival=round(now, 6),
                    mode="fast",
                    prompt_tokens=length,
                    answer_tokens=answer,
                    id=id,
                    prefix=said,
                    latency_ms=recipe.latency_ms,
                )
            )
        said = (*said, (id, question + answer))
        if random.random() >= 1 - 1 / recipe.turns:
            break
        if recipe.think_seconds:
            now += random.expovariate(1 / recipe.think_seconds)
    return turns


def _length(random: Random, median: int, most: int) -> int:
    return max(1, min(most, round(median * math.exp(SPREAD * random.gauss(0, 1)))))
