"""Made traces, for those who have none: bots with a shared system prompt, and problems that need thought."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from fastslow.tools.simulate.trace import LATENCY_MS, MOST_TOKENS, TracedRequest

MOST_REQUESTS = 2_000_000
MOST_ANSWER = 32_768
MOST_SECONDS = 1e8  # of a made trace: three years
MOST_EARLIER = 2e6  # chats that began before its zero
BURST = 4.0  # times the mean rate, in a burst
BURST_SECONDS = 20.0  # mean length of a burst
SPREAD = 0.8  # of the logarithm of lengths
LONGEST = 3  # times the mean, that few chats are longer than


@dataclass(frozen=True, slots=True)
class TraceRecipe:
    """What a made trace is like. Lengths are medians of lognormal ones.

    Attributes:
        requests: how many.
        rate: requests a second, on average.
        burst: share of the requests that come in bursts of four times the rate; 0 = Poisson arrivals.
        deep: share of the requests that think: single questions without a target.
        bots: system prompts, each shared by its chats; some are used more than others.
        system_tokens: of a system prompt.
        turns: mean questions of a chat, each of which repeats what was said before.
        think_seconds: mean pause of a user between an answer and the next question.
        question_tokens, answer_tokens: of a chat's turn.
        deep_tokens: of a deep answer, thought included.
        latency_ms: target of quick requests; None = none.
        fast_mode, deep_mode: names.
        seed: the same one gives the same trace.
    """

    requests: int = 2_000
    rate: float = 4.0
    burst: float = 0.0
    deep: float = 0.2
    bots: int = 20
    system_tokens: int = 1_000
    turns: float = 4.0
    think_seconds: float = 30.0
    question_tokens: int = 60
    answer_tokens: int = 150
    deep_tokens: int = 2_000
    latency_ms: float | None = None
    fast_mode: str = "fast"
    deep_mode: str = "deep"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (
            ("requests", 1, MOST_REQUESTS),
            ("rate", 1e-6, 1e6),
            ("burst", 0, 0.95),
            ("deep", 0, 1),
            ("bots", 1, 100_000),
            ("system_tokens", 0, 100_000),
            ("turns", 1, 1_000),
            ("think_seconds", 0, 1e6),
            ("question_tokens", 1, 100_000),
            ("answer_tokens", 1, MOST_ANSWER),
            ("deep_tokens", 1, MOST_ANSWER),
        ):
            if not least <= getattr(self, name) <= most:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be between {least} and {most:g}"
                )
        least, most = LATENCY_MS
        if self.latency_ms is not None and not least <= self.latency_ms <= most:
            raise ValueError(f"latency_ms={self.latency_ms} must be between {least} and {most:g}")
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


def make_trace(recipe: TraceRecipe) -> list[TracedRequest]:
    """A trace by arrival, at its full rate from the first second on.

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
    """All requests of so many seconds."""
    random = Random(recipe.seed)
    fast_rate, deep_rate = recipe.rate * (1 - recipe.deep), recipe.rate * recipe.deep
    before = LONGEST * recipe.think_seconds * recipe.turns
    found: list[TracedRequest] = []
    starts = _arrivals(random, fast_rate / recipe.turns, seconds + before, recipe.burst)
    for chat, start in enumerate(starts):
        found += _chat(random, recipe, start - before, chat)
    for place, start in enumerate(_arrivals(random, deep_rate, seconds, recipe.burst)):
        found.append(_deep(random, recipe, start, place))
    found = [one for one in found if 0 <= one.arrival <= seconds]
    return sorted(found, key=lambda one: (one.arrival, one.id))


def _arrivals(random: Random, rate: float, until: float, burst: float) -> list[float]:
    """Poisson arrivals, or those of a rate that jumps between bursts and calm times."""
    found: list[float] = []
    if rate <= 0:
        return found
    now = 0.0
    high = BURST * rate if burst else rate
    # of the time; the rest of the requests comes in what is left of it
    share = burst / BURST
    low = rate * (1 - burst) / (1 - share)
    bursting, change = False, 0.0
    while True:
        if now >= change:
            bursting = random.random() < share if burst else True
            change = now + random.expovariate(1 / BURST_SECONDS)
        gap = random.expovariate(high if bursting else low)
        if burst and now + gap > change:
            now = change  # the rate is another one there
            continue
        now += gap
        if now > until:
            return found
        found.append(now)


def _chat(random: Random, recipe: TraceRecipe, start: float, chat: int) -> list[TracedRequest]:
    """The turns of one chat. How long the answers take is not known yet: pauses are from question to question."""
    bot = min(int(random.paretovariate(1.0)) - 1, recipe.bots - 1)
    said: list[tuple[str, int]] = []
    if recipe.system_tokens:
        said.append((f"bot-{bot}", recipe.system_tokens))
    turns, now = [], start
    more = 1 - 1 / recipe.turns
    for turn in range(1_000):
        question = _length(random, recipe.question_tokens, 100_000)
        answer = _length(random, recipe.answer_tokens, MOST_ANSWER)
        id = f"chat-{chat}-{turn}"
        length = sum(tokens for _, tokens in said) + question
        if length > MOST_TOKENS:
            break
        turns.append(
            TracedRequest(
                arrival=round(now, 6),
                mode=recipe.fast_mode,
                prompt_tokens=length,
                answer_tokens=answer,
                id=id,
                prefix=tuple(said),
                latency_ms=recipe.latency_ms,
            )
        )
        said.append((id, question + answer))
        if random.random() >= more:
            break
        if recipe.think_seconds:
            now += random.expovariate(1 / recipe.think_seconds)
    return turns


def _deep(random: Random, recipe: TraceRecipe, start: float, place: int) -> TracedRequest:
    return TracedRequest(
        arrival=round(start, 6),
        mode=recipe.deep_mode,
        prompt_tokens=_length(random, 3 * recipe.question_tokens, 100_000),
        answer_tokens=_length(random, recipe.deep_tokens, MOST_ANSWER),
        id=f"deep-{place}",
        deep=True,
    )


def _length(random: Random, median: int, most: int) -> int:
    return max(1, min(most, round(median * math.exp(SPREAD * random.gauss(0, 1)))))
