"""Word problems with drawn names, things and numbers."""

from __future__ import annotations

from random import Random

from words import WORDS


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
