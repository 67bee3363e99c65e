"""Requests for small Python functions; the examples in their docstrings are computed, not guessed."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from questions import WORDS

KEEP: dict[str, tuple[str, Callable[[int], bool]]] = {
    "even numbers": ("even", lambda n: n % 2 == 0),
    "odd numbers": ("odd", lambda n: n % 2 == 1),
    "positive numbers": ("positive", lambda n: n > 0),
    "negative numbers": ("negative", lambda n: n < 0),
    "multiples of three": ("threes", lambda n: n % 3 == 0),
    "numbers greater than ten": ("large", lambda n: n > 10),
    "numbers that are not divisible by five": ("not_fives", lambda n: n % 5 != 0),
    "prime numbers": ("prime", lambda n: n > 1 and all(n % d for d in range(2, n))),
    "numbers with two digits": ("two_digit", lambda n: 10 <= abs(n) <= 99),
    "numbers": ("all", lambda n: True),
}
TURN: dict[str, tuple[str, Callable[[int], int]]] = {
    "squares of the": ("squares", lambda n: n * n),
    "cubes of the": ("cubes", lambda n: n**3),
    "doubles of the": ("doubles", lambda n: 2 * n),
    "absolute values of the": ("abs", abs),
    "digit sums of the": ("digit_sums", lambda n: sum(map(int, str(abs(n))))),
    "last digits of the": ("last_digits", lambda n: abs(n) % 10),
    "": ("", lambda n: n),
}
FOLD: dict[str, tuple[str, Callable[[list[int]], Any]]] = {
    "Return the sum of the": ("sum", sum),
    "Return a list of the": ("list", list),
    "Return the largest of the": ("max", lambda x: max(x, default=None)),
    "Return the smallest of the": ("min", lambda x: min(x, default=None)),
    "Count the": ("count", len),
    "Return the sorted list of the": ("sorted", sorted),
    "Return, in reverse order, the": ("reverse", lambda x: x[::-1]),
    "Return the average of the": ("mean", lambda x: sum(x) / len(x) if x else None),
    "Return the distinct values among the": ("distinct", lambda x: sorted(set(x))),
    "Return the product of the": ("product", lambda x: __import__("math").prod(x)),
}
LETTERS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "vowels": ("vowels", lambda c: c.lower() in "aeiou"),
    "consonants": ("consonants", lambda c: c.isalpha() and c.lower() not in "aeiou"),
    "uppercase letters": ("upper", str.isupper),
    "lowercase letters": ("lower", str.islower),
    "digits": ("digits", str.isdigit),
    "spaces": ("spaces", str.isspace),
    "letters": ("letters", str.isalpha),
}
ACTS: dict[str, tuple[str, Callable[[str, Callable[[str], bool]], Any]]] = {
    "Remove the {} from the string.": ("remove", lambda s, f: "".join(c for c in s if not f(c))),
    "Count the {} in the string.": ("count", lambda s, f: sum(map(f, s))),
    "Keep only the {} of the string.": ("keep", lambda s, f: "".join(filter(f, s))),
    "Replace the {} of the string by '*'.": ("mask", lambda s, f: "".join("*" if f(c) else c for c in s)),
    "Return the positions of the {} in the string.": ("find", lambda s, f: [i for i, c in enumerate(s) if f(c)]),
    "Return True if the string has no {}.": ("without", lambda s, f: not any(map(f, s))),
    "Move the {} to the end of the string.": (
        "move", lambda s, f: "".join(c for c in s if not f(c)) + "".join(filter(f, s))),
}  # fmt: skip


class Task(NamedTuple):
    name: str
    argument: str
    sentence: str
    examples: list[tuple[Any, Any]]


def numbers(random: Random) -> Task:
    keep, (one, test) = random.choice(list(KEEP.items()))
    turn, (two, change) = random.choice(list(TURN.items()))
    fold, (three, reduce) = random.choice(list(FOLD.items()))
    examples = []
    for _ in range(random.randint(1, 4)):
        values = [random.randint(-15, 40) for _ in range(random.randint(2, 6))]
        examples.append((values, reduce([change(v) for v in values if test(v)])))
    name = random.choice(
        (f"{three}_{one}", f"{three}_of_{one}_{two}".strip("_"), f"{one}_{three}", "solve")
    )
    argument = random.choice(
        ("numbers: list", "nums", "lst", "l: list[int]", "arr", "values: List[int]")
    )
    return Task(name, argument, f"{fold} {turn} {keep} in the list.".replace("  ", " "), examples)


def strings(random: Random) -> Task:
    kind, (one, test) = random.choice(list(LETTERS.items()))
    act, (two, change) = random.choice(list(ACTS.items()))
    picked = random.sample(WORDS["words"], random.randint(1, 4))
    name = random.choice(
        (f"{two}_{one}", f"{two}{one.capitalize()}", f"{two}_the_{one}", "process")
    )
    return Task(name, random.choice(("s", "text: str", "string", "txt", "word: str")), act.format(kind),
                [(word, change(word, test)) for word in picked])  # fmt: skip


def code(random: Random) -> str:
    """One request: a signature with a docstring to complete, or one in plain words."""
    if random.random() < 0.3:
        return random.choice(WORDS["requests"]).format(random.choice(WORDS["functions"]))
    task = random.choice((numbers, numbers, strings))(random)
    quote = random.choice(('"""', '"""', "'''"))
    style = random.choice(
        (
            ">>> {n}({a!r})\n    {r!r}",
            "{n}({a!r}) == {r!r}",
            "{n}({a!r}) => {r!r}",
            "{n}({a!r}) returns {r!r}",
        )
    )
    shown = "\n    ".join(style.format(n=task.name, a=a, r=r) for a, r in task.examples)
    start = random.choice(("", "", "\n    ", " "))
    title = random.choice(("\n    ", "\n\n    Examples:\n    ", "\n    For example:\n    "))
    arrow = random.choice((":", ":", " -> int:" if isinstance(task.examples[0][1], int) else ":"))
    body = f"def {task.name}({task.argument}){arrow}\n    {quote}{start}{task.sentence}{title}{shown}\n    {quote}\n"
    if "List[" in body:
        body = "from typing import List\n\n\n" + body
    return random.choice(WORDS["completions"]) + body
