"""The meaning of a key: its memory, and what it may ask."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest

from fastslow.request.options import GenerateOptions, given_sampling
from fastslow.serve.api.engine import ModelCard
from fastslow.serve.api.errors import ApiError
from fastslow.serve.api.keys import KeyLimits, StoredKey
from fastslow.serve.api.limits import Caller

CARD = ModelCard("tiny", 0, 512, {"fast": {"sampling": {"max_tokens": 3}}, "deep": {}}, "groups", 4, True, False)


def stored(n: int, **limits: Any) -> StoredKey:
    return StoredKey(name=f"k{n}", id=f"{n:032x}", hash=f"{n:064x}", limits=KeyLimits(**limits))


def test_memory_is_each_callers_own_stays_and_does_not_show_the_key() -> None:
    callers = [Caller.of(stored(n)) for n in range(3)] + [Caller()]
    salts = [None, "", "a", "b", "ab", "a\0b", "\0"]
    salts += [one.memory_key for one in callers[:3]]
    found = [one.memory(salt) for one in callers for salt in salts]
    known = [key for key in found if key is not None]
    assert found.count(None) == 1  # who has no key and no salt
    assert len(set(known)) == len(known) and all(len(key) == 64 for key in known)
    key = stored(7)
    other = key.model_copy(update={"hash": "f" * 64, "name": "renamed"})
    assert Caller.of(key).memory("a") == Caller.of(other).memory("a")
    assert key.id not in str(Caller.of(key).memory_key)


def limited(ask: GenerateOptions, **limits: Any) -> GenerateOptions:
    return Caller.of(stored(1, **limits)).limited(ask, CARD)


def test_what_is_within_the_limits_passes() -> None:
    ask = GenerateOptions(mode="fast", priority=3, sampling={"max_tokens": 5})
    assert limited(ask) is ask
    assert limited(ask, modes=["fast"], priority=[0, 3], max_tokens=5) == ask
    shorter = GenerateOptions(mode={"base": "fast", "thinking": "off", "thinking_budget": 0})
    assert limited(shorter, modes=["fast"]).mode["bounds"] == ("all",)  # type: ignore[index]
    assert limited(GenerateOptions(priority=0), priority=[5, 9]).priority == 5
    assert limited(GenerateOptions(priority=0), priority=[-9, -5]).priority == -5


FAST = {"modes": ["fast"]}


@pytest.mark.parametrize(("options", "limits", "said"), [
    *(
        ({"mode": mode}, FAST, "mode='deep' is not open")
        for mode in (None, "deep", {"name": "fast"}, {"base": "deep"})
    ),
    (
        {"mode": {"base": "fast", "groups": 8, "thinking": "off"}},
        FAST,
        "groups=8 is not open to this key, but modes as they are: fast$",
    ),
    ({"mode": {"base": "fast", "escalate": {}}}, FAST, "escalate="),
    ({"priority": -1}, {"priority": [0, 5]}, "priority=-1 must be from 0 to 5 with this key"),
    ({"priority": -1}, {}, "priority=-1 must be from 0 to 1000 without a key that allows more"),
    ({"mode": {"base": "fast", "confidence": {"every": 9}}}, FAST, "confidence={.*true or false"),
    ({"sampling": {"max_tokens": 11}}, {"max_tokens": 10}, "max_tokens=11 is above 10"),
    ({"sampling": {"max_tokens": 3, "n": 4}}, {"max_tokens": 10}, "=3 for each of 4 answers"),
    ({"sampling": {"n": 11}}, {"max_tokens": 10}, "a token for each of 11 answers is above 10"),
    ({"sampling": {"max_tokens": 11}}, {"tokens_per_minute": 10}, "max_tokens=11 is above 10"),
])  # fmt: skip
def test_what_is_beyond_them_is_refused(options: dict[str, Any], limits: dict[str, Any], said: str) -> None:
    with pytest.raises(ApiError, match=said) as error:
        limited(GenerateOptions(**options), **limits)
    assert error.value.status == 403


def test_a_templates_effort_is_bounded_too() -> None:
    card = replace(CARD, efforts=("low", "high"), modes={"fast": {"thinking": "off"}, "deep": {}})
    for level, mode, refused in (("low", "fast", 0), ("high", "fast", 1), ("high", "deep", 0)):
        variables = {"reasoning_effort": level}
        ask = GenerateOptions(mode=mode, chat_template_kwargs=variables)
        caller = Caller.of(stored(1, modes=["fast", "deep"]))
        with pytest.raises(ApiError, match="above 'low'") if refused else nullcontext():
            caller.limited(ask, card)


@pytest.mark.parametrize(("mode", "most", "given"), [
    ("fast", 10, None),  # the preset has 3
    ("fast", 2, 2),
    ({"base": "fast", "thinking": "off"}, 10, None),
    ({"base": "fast", "thinking": "off"}, 2, 2),
    ("deep", 10, 10),
    (None, 10, 10),
    ("not there", 10, 10),  # the engine says what is wrong
    ("deep", 1000, 1000),
])  # fmt: skip
def test_who_gives_no_max_tokens_gets_the_most(mode: Any, most: int, given: int | None) -> None:
    ask = GenerateOptions(sampling={}, mode=mode)
    assert given_sampling(limited(ask, max_tokens=most).sampling).get("max_tokens") == given


def test_a_keys_tokens_are_those_of_all_answers_of_a_call() -> None:
    four = GenerateOptions(sampling={"n": 4})
    assert limited(four, max_tokens=10).sampling == {"n": 4, "max_tokens": 2}
    assert limited(four, max_tokens=100, tokens_per_minute=20).sampling == {"n": 4, "max_tokens": 5}
    caller = Caller.of(stored(1, max_tokens=24))
    assert caller.limited(four, CARD, prompts=3).sampling == {"n": 4, "max_tokens": 2}
    brief = GenerateOptions(sampling_defaults={"max_tokens": 16})
    assert limited(brief, max_tokens=500) is brief, "the server's default is less"
