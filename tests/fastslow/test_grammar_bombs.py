"""Grammars that are made to be slow, and how long the answers beside them wait."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from fastslow import LLM, GenerationError, SamplingParams

pytestmark = pytest.mark.slow

WORDS = "the cat sat on the mat and "
WORST = 0.25  # seconds that one token may come later than alone
SHARED = 0.2  # seconds of the 99th percentile: masks are made on the same cores
TOKENS = 120  # of the answer beside


def chain(rules: int) -> str:
    """Lark: rules of which each may be empty."""
    return "\n".join([*[f'r{i}: "x" r{i + 1} | r{i + 1}' for i in range(rules)], f'r{rules}: "y"'])


def levels(count: int) -> str:
    return "\n".join(["start: n0", *[f"n{i}: n{i + 1} n{i + 1} |" for i in range(count)], f'n{count}: "a" |'])


def gbnf(rules: int, body: str) -> str:
    lines = [f"r{i} ::= {body}".replace("NEXT", f"r{i + 1}") for i in range(rules)]
    return "\n".join(["root ::= r0", *lines, f'r{rules} ::= "y"'])


def properties(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"name{i}": {"type": "integer"} for i in range(count)}}


LONG = (WORDS * 5000)[:120_000]
AMBIGUOUS = 's: s s | s s s | "a" |'
OVERLAPPING = "\n".join(f"W{i}: /[a-z]{{1,50}}[0-9]{{{i % 9}}}x{i}/" for i in range(400))
BOMBS: dict[str, dict[str, Any]] = {
    "ambiguous": {"lark": f"start: s\n{AMBIGUOUS}"},
    "ambiguous after a letter": {"lark": f'start: "b" s\n{AMBIGUOUS}'},
    "ambiguous after a word": {"lark": f'start: /[b-z]{{3,9}} / s\n{AMBIGUOUS}'},
    "25 nullable levels": {"lark": levels(25)},
    "12 nullable levels": {"lark": levels(12)},
    "four starts": {"lark": 'start: start start start start "a" | "a"'},
    "sums": {"lark": 'start: e\ne: e "+" e | e "*" e | e e | /[0-9]/'},
    "palindromes": {"lark": 'start: p\np: "a" p "a" | "b" p "b" | "c" p "c" |'},
    "many empty parts": {"lark": "start: (" + " ".join(f'"{c}"?' for c in "abcdefgh" * 40) + ")*"},
    "lists of lists": {"lark": 'start: l\nl: "a" l | l "a" | l l | ""'},
    "chain of 3000": {"lark": f"start: r0\n{chain(3000)}"},
    "chain of 1000": {"lark": f"start: r0\n{chain(1000)}"},
    "chain after a word": {"lark": f'start: "yes " r0\n{chain(3000)}'},
    "overlapping words": {
        "lark": f"start: ({' | '.join(f'W{i}' for i in range(400))})*\n{OVERLAPPING}"
    },
    "GBNF chain of 4000": {"gbnf": gbnf(4000, '"x" NEXT | NEXT')},
    "GBNF of 4000 letters": {"gbnf": gbnf(4000, '[a-z] NEXT')},
    "GBNF of comments": {"gbnf": "# " + "x" * 120_000 + '\nroot ::= "a"*'},
    "const": {"json_schema": {"const": LONG}},
    "const in an object": {"json_schema": {"type": "object", "properties": {"a": {"const": LONG}},
        "required": ["a"]}},
    "two long texts": {"json_schema": {"enum": ["a" + LONG[:60_000], "b" + LONG[:60_000]]}},
    "long text in Lark": {"lark": f"start: {json.dumps(LONG)}"},
    "long text as regex": {"regex": LONG},
    "long choices": {"choice": [WORDS * 4 + str(i) * 30 for i in range(1000)]},
    "repeats of repeats": {"regex": "((((a{1,999}){1,999}){1,999}){1,999}){999}"},
    "many states": {"regex": "[ab]*a[ab]{18}c"},
    "letters and numbers": {"regex": r"(\p{L}\p{N}?){1,900}!"},
    "2000 optional names": {"json_schema": properties(2000)},
    "multiples": {"json_schema": {"type": "integer", "multipleOf": 99_991}},
    "eight patterns": {"json_schema": {"allOf": [
        {"type": "string", "pattern": f"^[a-z]*{c}[a-z]{{{i}}}$"} for i, c in enumerate("abcdefgh", 9)
    ]}},
    "5000 items": {"json_schema": {"type": "array", "items": {"enum": [1, "on"]}, "minItems": 5000}},
}  # fmt: skip


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("smollm2", progress=False) as opened:
        yield opened


def gaps(llm: LLM, name: str, bomb: dict[str, Any] | None) -> tuple[float, float]:
    """Seconds between the tokens of an answer, with requests for a bomb beside it: the 99th percentile and the worst.
    They are shown beside the median."""

    def attack() -> None:
        for seed in range(2):
            params = SamplingParams(max_tokens=40, temperature=1.0, seed=seed, grammar=bomb, ignore_eos=True)
            with suppress(ValueError, GenerationError):
                llm.chat("aaaa", params, progress=False)

    free = SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True)
    attackers = [threading.Thread(target=attack) for _ in range(2 if bomb else 0)]
    times = [time.perf_counter()]
    for place, _ in enumerate(llm.stream("Once upon a time", free, speculation="off")):
        times.append(time.perf_counter())
        if place == 5:
            for thread in attackers:
                thread.start()
    for thread in attackers:
        thread.join()
    spent = np.diff(times)[2:]
    p50, p99, worst = (float(x) for x in np.quantile(spent, (0.5, 0.99, 1)))
    print(f"| {name} | {1000 * p50:.1f} | {1000 * p99:.1f} | {1000 * worst:.1f} |", flush=True)
    return p99, worst


def test_nobody_waits_for_a_slow_grammar(llm: LLM) -> None:
    """Each bomb four times, two at a time, beside an answer of 120 tokens."""
    print("\n| bomb | p50 ms | p99 ms | worst ms |\n|---|---|---|---|")
    gaps(llm, "usual", {"regex": "[a-z]{1,20}"})  # tables of the vocabulary are made once
    alone, rows = list[tuple[float, float]](), dict[str, tuple[float, float]]()
    for place, (name, bomb) in enumerate(BOMBS.items()):
        if place % 5 == 0:  # other work on the machine changes
            alone.append(gaps(llm, "alone", None))
        rows[name] = gaps(llm, name, bomb)
    p99, worst = map(max, zip(*alone))
    late = {name: row for name, row in rows.items() if row[1] > worst + WORST}
    slow = {name: row for name, row in rows.items() if row[0] > 2 * p99 + SHARED}
    assert not late and not slow, (late, slow)
