"""Whole steps are kept or rewritten: lossy, and only where it is asked for."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastslow import LLM, Mode, SamplingParams, Speculation
from fastslow.engine.sampling.accept.lossy import LossyStepwise
from fastslow.engine.types import OneHot, Tree

V, END = 6, 5
CLOSE = 4  # </think>
RULE = LossyStepwise(frozenset({END}), 0.5)


def certain(token: int, **probs: float) -> OneHot:
    """The choice of `token`; the others have the given probabilities."""
    probs_V = np.full(V, 0.01, dtype=np.float32)
    for name, p in probs.items():
        probs_V[int(name[1:])] = p
    return OneHot(token, probs_V)


def place(depth: int) -> np.random.Generator:
    return np.random.default_rng(depth)


GOOD, BAD = certain(0, _1=0.9, _5=0.9), certain(0, _1=0.1, _5=0.1)
STEP, THREE = Tree.chain([1, 2, END]), Tree.chain([1, END] * 3)
BRANCHES = Tree([1, 2, END, 3], [-1, -1, 0, 1])


@pytest.mark.parametrize(
    ("tree", "rows", "kept"),
    [
        # likely, though the target would say it otherwise: (0.45 * 0.9 * 0.4) ** (1/3) is 0.54
        (
            STEP,
            [certain(0, _1=0.45), certain(2, _2=0.9), certain(0, _5=0.4), certain(3, _3=0.9)],
            ([0, 1, 2], 3),
        ),
        # unlikely: what the target says too is kept, then its own token comes
        (STEP, [certain(1, _1=0.6), certain(0, _2=0.1), certain(0, _5=0.9), certain(3)], ([0], 0)),
        (THREE, [GOOD] * 4 + [BAD] * 3, ([0, 1, 2, 3], 0)),
        (THREE, [GOOD] * 2 + [BAD] * 2 + [GOOD] * 3, ([0, 1], 0)),  # nothing after a refused step
        # of a tree the deepest path
        (
            BRANCHES,
            [certain(0, _1=0.9, _2=0.9), certain(0, _5=0.2), certain(0, _3=0.9), certain(4), certain(4)],
            ([1, 3], 4),
        ),
        (Tree.chain([1]), [np.eye(V, dtype=np.float32)[3]] * 2, ([], 3)),  # left out by a sampled law
    ],
)  # fmt: skip
def test_which_steps_are_kept(tree: Tree, rows: Any, kept: tuple[list[int], int]) -> None:
    assert RULE(tree, rows, place) == kept


@pytest.fixture(scope="module")
def llm(tiny_chat: Path) -> Iterator[LLM]:
    with LLM(tiny_chat, kv_memory="4MiB", progress=False) as llm:
        yield llm


def setting(**fields: Any) -> Speculation:
    return Speculation(**{"drafter": "self", "groups": 0, "nodes": 4, "accept": "lossy-stepwise", **fields})


def runs(llm: LLM, speculation: Speculation, **fields: Any) -> tuple[Sequence[int], float]:
    params = SamplingParams(max_tokens=24, ignore_eos=True, **fields)
    room = {"base": "deep", "answer_room": None}  # which forbids drafted tags at the end
    out = llm.chat("one two", params, mode=room, speculation=speculation)
    return out.token_ids, out.metrics.tokens_per_step


@pytest.mark.drafts(30, 20, nodes=None)
def test_in_the_engine_a_lower_score_keeps_more(llm: LLM) -> None:
    exact, exact_rate = runs(llm, setting(accept="auto"))
    strict, _ = runs(llm, setting(step_score=1.0))
    loose, fast = runs(llm, setting(step_score=1e-6))
    assert strict == exact, "only a certain step may be another one"
    assert fast == 24 / 6 and fast > exact_rate, "every draft of four is kept, after a first step without one"
    assert loose != exact


@pytest.mark.drafts(1, nodes=None)
@pytest.mark.parametrize("most", [0, 1, 5, 9])
def test_a_line_that_breaks_a_thinking_budget_is_not_kept(llm: LLM, most: int) -> None:
    """An answer remembered without a budget is drafted in one with it."""
    told = setting(drafter="suffix", nodes=16, step_score=1e-6)
    question = f"hello {most} there <think>"
    free = llm.generate(question, SamplingParams(max_tokens=40, ignore_eos=True), mode=Mode())
    assert CLOSE not in free.token_ids
    mode = Mode(thinking_budget=most)
    out = llm.generate(question, SamplingParams(max_tokens=most + 8, ignore_eos=True), mode=mode, speculation=told)
    assert out.token_ids[: most + 1] == [*free.token_ids[:most], CLOSE]
    assert (out.metrics.thinking_tokens, out.metrics.thinking_ended) == (most, "budget")


@pytest.mark.drafts(20, 10, nodes=None)
def test_a_line_with_a_token_that_is_forbidden_is_not_kept(llm: LLM) -> None:
    told = setting(drafter="suffix", nodes=16, step_score=0.05)
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    banned = llm.generate("one two three", params).token_ids[5]
    bias = params.model_copy(update={"logit_bias": {banned: -100.0}})
    assert banned not in llm.generate("one two three", bias, speculation=told).token_ids
    early = SamplingParams(max_tokens=24, min_tokens=24, stop_token_ids=(banned,))
    assert banned not in llm.generate("one two three", early, speculation=told).token_ids
