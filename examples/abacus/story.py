"""Word problems: somebody has things, gets more, gives some away, and is asked how many are left."""

from __future__ import annotations

from random import Random

from abacus.task import Task, worked

PEOPLE = {
    "Anna": "She",
    "Ben": "He",
    "Clara": "She",
    "David": "He",
    "Emma": "She",
    "Felix": "He",
    "Lena": "She",
    "Tom": "He",
}
THINGS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps")
STARTS = ("{who} has {n} {things}.", "{who} starts with {n} {things}.", "{who} owns {n} {things}.")
PACKED = "{who} has {m} boxes with {n} {things} in each."
CHANGES = {
    "+": (
        "{she} buys {n} more.",
        "{she} finds {n} more.",
        "{other} gives {who} {n} more.",
        "Then {who} gets {n} {things} as a present.",
    ),
    "-": (
        "{she} gives {n} to {other}.",
        "{she} loses {n} of them.",
        "{she} sells {n} {things}.",
        "Then {other} takes {n} away.",
    ),
    "*": ("Then the number grows to {n} times as many.", "{she} makes it {n} times as many."),
}
ASIDE = "{other} has {n} {things}."
LIMITS = (10, 20, 50, 100, 100, 1000)
QUESTION = "How many {things} does {who} have now?"


def story(rng: Random, size: int) -> Task:
    """Changes to a number of things: one of them up to size 2 (things in boxes count as one), else up to
    three. Numbers are below 10,
    20, 50 or 100 at sizes 1 to 4, at size 6 below 1000. One story in four tells of somebody else's
    things as well, which do not count."""
    who, other = rng.sample(sorted(PEOPLE), 2)
    things = rng.choice(THINGS)
    words = {"who": who, "other": other, "she": PEOPLE[who], "things": things}
    limit = LIMITS[size - 1]
    plan, steps = "", ""
    count = rng.randint(2, limit - 1)
    if rng.random() < 0.25:
        boxes, each = rng.randint(2, 5 if size < 3 else 9), rng.randint(2, min(99, limit - 1))
        sentences = [PACKED.format(**words, m=boxes, n=each)]
        plan = f"{each}*{boxes}"
        lines, count = worked(each, "*", boxes)
        steps += lines
    else:
        plan = str(count)
        sentences = [rng.choice(STARTS).format(**words, n=count)]
    if rng.random() < 0.25:
        sentences.append(ASIDE.format(**words, n=rng.randint(2, limit - 1)))
    packed = "*" in plan
    for _ in range(rng.randint(1, min(3, (size + 1) // 2)) - (packed and size < 3)):
        sign = rng.choice("++--*" if count < 1000 else "+-")
        most = (
            min(9, limit // 4)
            if sign == "*"
            else min(limit - 1, count)
            if sign == "-"
            else limit - 1
        )
        amount = rng.randint(min(2, most), most)
        plan += f"{sign}{amount}"
        lines, count = worked(count, sign, amount)
        steps += lines
        sentences.append(rng.choice(CHANGES[sign]).format(**words, n=amount))
    sentences.append(QUESTION.format(**words))
    return Task(" ".join(sentences), str(count), "story", f"{plan}\n{steps}")
