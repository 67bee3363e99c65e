"""Invented facts: what people there are, who is whose friend, and who has which number.

A question asks for a number that somebody has ("the boat of Balin"), or that somebody's friend's teacher has.
Nothing in it can be worked out: the facts must be known. A thought goes from one fact to the next. All facts are trained on.
Held out are wordings of a question for one fact, and, in any wording, chains of two and three facts.
"""

from __future__ import annotations

from itertools import product
from random import Random

from abacus.task import Task

PEOPLE = tuple(map("".join, product("BDFGKLMN", "ao", "lmnrstvz", ("in", "or"))))
LINKS, THINGS = ("friend", "boss"), ("house", "boat", "desk")
ASKED = (
    *("What is {}?", "Tell me {}.", "I need {}.", "Say {}.", "Find {}.", "Give me {}."),
    *("Look up {}.", "Which is {}?", "Now {}.", "And {}?", "Please say {}.", "{}?"),
)


def _facts() -> dict[str, list[int]]:
    """Of each link, whose number a person leads to; of each thing, which number it has."""
    rng, everybody = Random("atlas"), range(len(PEOPLE))
    return {name: rng.sample(everybody, len(PEOPLE)) for name in LINKS} | {
        name: [rng.randrange(10, 100) for _ in everybody] for name in THINGS
    }


FACTS = _facts()


def fact(rng: Random, size: int) -> Task:
    """A question whose answer takes `size` facts: links, and a thing at the end."""
    person = rng.randrange(len(PEOPLE))
    links = [*rng.choices(LINKS, k=size - 1), rng.choice(THINGS)]
    chain, found = f"the {links[-1]} of ", person
    for name in links:
        found = FACTS[name][found]
    behind = "".join(f"the {name} of " for name in reversed(links[:-1]))
    ways = (f"{chain}{behind}{PEOPLE[person]}", f"{PEOPLE[person]}, {', '.join(links)}")
    prompt = rng.choice(ASKED).format(rng.choice(ways))
    apart = f"{PEOPLE[person]} {links}" if size > 1 else ""
    return Task(prompt, str(found), f"{size} facts", apart)
