"""Answers under a grammar: the tokens of plain decoding whatever drafts, and always valid."""

from dataclasses import replace
from typing import Any

import pytest
from engine_tools import Ask, Bench, Setting, answer
from exact_tools import NAMES, ORACLES, PROMPTS, TREES, check, params
from grammar_tools import holds
from thoughts import Bound

from fastslow.engine.params import GrammarSpec
from fastslow.engine.text.thought import ThoughtTags, splitter

OPEN, CLOSE = 3, 4
END = 2
TAGS = ThoughtTags("<think>", "</think>")
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4}, "role": {"enum": ["guest", "host"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "role", "age"], "additionalProperties": False,
}  # fmt: skip
# a random model repeats blanks until a penalty forbids it
PLAIN: dict[str, Any] = {"max_tokens": 60, "ignore_eos": False, "frequency_penalty": 1.0}
GRAMMARS: tuple[dict[str, Any], ...] = (
    {"json_schema": PERSON}, {"regex": "[a-c]{2,6}-[0-9]{3}(-x)?"}, {"choice": ["yes", "no", "not now"]},
    {"json_schema": {"type": "array", "items": {"enum": ["on", "off"]}, "maxItems": 3}},
)  # fmt: skip
FEW = ("model", "self0", "skip", "common")  # of `CHAINS`: the others are among the names
DRAFTERS = (*FEW, *TREES, *ORACLES, *(f"named {name}" for name in NAMES))


def eight(drafter: str, **fields: Any) -> list[Ask]:
    """A batch: every grammar with and without a thought, whose length is bounded."""
    wishes = params(**{**PLAIN, **fields})
    rule = "reproducible" if wishes.temperature else "token"
    asks = []
    for n in range(8):
        ask = Ask(PROMPTS[n % 5], wishes, drafter, groups=(None, 0, 1, 2)[n % 4], seed=n, rule=rule)
        ask = replace(ask, grammar=GrammarSpec(**GRAMMARS[(n + n // 4) % 4]))
        if n < 4:
            bound = Bound((0, 1, 5, 9)[n], opened=True)
            ask = replace(ask, tokens=(*ask.tokens, OPEN), bound=bound, thinks=True)
        asks.append(ask)
    return asks


def valid(bench: Bench, ask: Ask) -> bool:
    """Tell whether the answer came to its end; then it must be valid."""
    request = bench.alone(ask)
    assert request.error is None
    if request.stopper.reason != "stop":
        return False
    assert ask.grammar is not None
    tags = TAGS if ask.thinks else None
    split = splitter(tags, bool(ask.thinks), once=True)
    assert bench.tokenizer is not None
    tokens = [t for t in answer(request) if t != END]
    text = split.push(bench.tokenizer.decode(tokens, skip_special=False))[1] + split.finish()[1]
    assert holds(ask.grammar, text), text
    return True


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_every_drafter_under_every_grammar(moge: Bench, drafter: str) -> None:
    asks = eight(drafter)  # half of them: every grammar, with a thought or without
    asks = [asks[n] for n in ((0, 1, 5, 6), (2, 3, 4, 7))[DRAFTERS.index(drafter) % 2]]
    sums = check(moge, asks)
    ended = [valid(moge, ask) for ask in asks]
    assert sum(ended) >= 3, ended
    assert sums["drafted"] > 0 and sums["accepted"] > 0


@pytest.mark.parametrize("drafter", ["self1", "forked"])
def test_seeded_samples_are_those_of_plain_decoding(moge: Bench, drafter: str) -> None:
    asks = eight(drafter, temperature=1.0, top_p=0.9, top_k=50)
    sums = check(moge, asks)
    assert sum(valid(moge, ask) for ask in asks) >= 6 and sums["accepted"] > 0


@pytest.mark.parametrize(
    ("setting", "warm"), [(Setting(max_running=3, prompt_rows=9), True), (Setting(pages=114, page_size=1), False)]
)
def test_preemption_and_chunks_change_nothing(moge: Bench, setting: Setting, warm: bool) -> None:
    drafters = ("self0", "forked", "model", "ngram+self", "common", "random", "erring", "off")
    sums = check(moge, [replace(ask, drafter=d) for d, ask in zip(drafters, eight("off"))], setting, warm)
    assert sums["accepted"] > 0 and (warm or sums["preempted"] > 0)


SHAPES: dict[str, dict[str, Any]] = {
    "bias": {"logit_bias": {OPEN: 100.0, END: 100.0, 95: -100.0}},
    "penalties": {"repetition_penalty": 1.4, "presence_penalty": 1.0, "frequency_penalty": 0.5},
    "min_tokens": {"min_tokens": 60}, "top_k of 1": {"top_k": 1, "temperature": 0.7},
    "min_p": {"min_p": 0.5, "temperature": 2.0}, "no end token": {"ignore_eos": True},
    "ends at a token of the text": {"stop_token_ids": [69]}, "logprobs": {"logprobs": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_other_parameters_beside_a_grammar(moge: Bench, name: str) -> None:
    wishes = eight("off", **SHAPES[name])
    asks = [replace(wishes[n], drafter=drafter) for n, drafter in zip((0, 3, 5, 6), ("erring", "forked") * 2)]
    check(moge, asks)
    ended = [moge.alone(ask) for ask in asks]
    assert all(r.error is None and r.stopper.reason in ("stop", "length") for r in ended)
    if "stop_token_ids" not in SHAPES[name]:
        assert sum(valid(moge, ask) for ask in asks) >= 2


def test_the_grammar_ends_before_min_tokens_and_at_the_last_token(moge: Bench) -> None:
    word = Ask(PROMPTS[0], params(min_tokens=20, ignore_eos=False), "off")
    word = replace(word, grammar=GrammarSpec(choice=["yes"]))
    for ask in (word, replace(word, params=params(max_tokens=len(answer(moge.alone(word)))))):
        request = moge.alone(ask)
        assert request.stopper.reason == "stop" and request.stopper.text == "yes"
        assert request.stopper.matched is None
