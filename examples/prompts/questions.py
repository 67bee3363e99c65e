"""Word problems, questions, explanations, customer service, news: patterns filled from lists."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

WORDS: dict[str, list[str]] = json.loads(Path(__file__).with_name("words.json").read_text("utf-8"))


def maths(random: Random) -> str:
    """One problem."""
    a, b, c = random.sample(WORDS["names"], 3)
    place = random.choice(WORDS["places"])
    pattern = random.choice(WORDS["exercises" if random.random() < 0.12 else "problems"])
    text = pattern.format(
        a=a, b=b, c=c, t=random.choice(WORDS["things"]), p1=place[0].upper() + place[1:],
        x=random.randint(15, 95), y=random.randint(6, 40), z=random.randint(2, 14),
        s=random.randint(3, 12), k=random.randint(2, 5), d=random.randint(2, 7),
        big=random.randint(8, 60) * 10, pct=random.choice((10, 15, 20, 25, 30, 40, 50, 60, 75)),
    )  # fmt: skip
    return text + random.choice(WORDS["problem_ends"])


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
