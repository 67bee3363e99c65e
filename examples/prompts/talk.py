"""Questions, explanations, customer service, news: patterns filled from lists."""

from __future__ import annotations

from random import Random

from words import WORDS


def question(random: Random) -> str:
    """One question or small task."""
    t, u = random.sample(WORDS["topics"], 2)
    return random.choice(WORDS["questions"]).format(t=t, u=u, p=random.choice(WORDS["countries"]))


def service(random: Random) -> str:
    """What a customer writes."""
    number = random.randint(2, 30)
    return random.choice(WORDS["service"]).format(
        g=random.choice(WORDS["goods"]), n=number, o=random.randint(10_000, 99_999)
    )


def news(random: Random) -> str:
    """A request for a newspaper article."""
    return random.choice(WORDS["news"]).format(
        t=random.choice(WORDS["topics"]),
        e=random.choice(WORDS["events"]),
        p=random.choice(WORDS["countries"]),
        n=random.choice(WORDS["names"]),
    )


def summary(random: Random, passage: str) -> str:
    """A request to sum up the passage."""
    return random.choice(WORDS["summaries"]).format(passage.strip())
