"""Questions, explanations, customer service: patterns filled from lists."""

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


def summary(random: Random, passage: str) -> str:
    """A request to sum up the passage."""
    return random.choice(WORDS["summaries"]).format(passage.strip())
