"""The mode that a request gets, and what it is said to depend on."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from fastslow import LLM, Mode, ModeChoice, PromptFacts, SamplingParams
from fastslow.policies.auto import BUILT_IN, LinearModeRouter, choose, read_selector
from fastslow.policies.features import LABELS, count_words, features

DEEP = [
    *("Why is the sky blue?", "What is 37*48?", "Write a python function that reverses a list."),
    "Anna has 3 apples and buys 12 more each day. How many does she have after 5 days?",
    *("为什么天空是蓝色的？", "Prove that there are infinitely many primes."),
]
FAST = [
    *("Hello!", "Who wrote Faust?", "Is the shop open on Sunday?", "What is the capital of France?"),
    *("Tell me a story.", "你好"),
]


@pytest.mark.parametrize(("text", "mode"), [*((t, "deep") for t in DEEP), *((t, "fast") for t in FAST)])
def test_tasks_are_thought_over_and_a_line_says_why(text: str, mode: str) -> None:
    choice = BUILT_IN(PromptFacts(text))
    name, _, rest = choice.why.partition(": ")
    assert name == choice.mode == mode
    terms, _, result = rest.rpartition(" = ")
    total = sum(float(x) for x in re.findall(r"[+-]\d+\.\d", terms))
    score = float(result.split()[0])
    assert total == pytest.approx(score, abs=0.05 * (1 + terms.count(",")))
    assert (score > 0) == (mode == "deep") or abs(score) < 0.05


@pytest.mark.parametrize(("facts", "mode", "why"), [
    ({"latency_ms": 100}, "fast", ""), ({"latency_ms": 5000}, "deep", ""), ({"busy": 0.9}, "deep", ""),
    ({"busy": 2.0}, "fast", "load -1.0"),
])  # fmt: skip
def test_the_callers_target_and_a_full_engine_speak_for_fast(facts: dict[str, Any], mode: str, why: str) -> None:
    choice = BUILT_IN(PromptFacts("Why is the sky blue?", **facts))
    assert choice.mode == mode and why in choice.why


@given(st.text(max_size=300), st.integers(0, 50), st.floats(0, 10))
def test_any_text_has_features(text: str, turns: int, busy: float) -> None:
    seen = features(PromptFacts(text, turns=turns, busy=busy, latency_ms=1.0))
    assert seen.keys() == LABELS.keys() and all(0 <= value <= 20 for value in seen.values())


def test_words_and_what_a_document_adds() -> None:
    assert (count_words("one two, 3 four"), count_words("为什么天空")) == (4, 5)
    article = "The minister said that 3 of 5 plans were == to be dropped; why, nobody knew. " * 60
    seen = features(PromptFacts(f"Sum up this text. {article} Thank you very much indeed. " + "x" * 400))
    assert seen["length"] > 9 and seen["numbers"] < 1.5, "it does not look like a task"


@pytest.mark.parametrize(("text", "says"), [
    ({"weights": {"lenght": 1.0}}, "'lenght' is unknown; did you mean 'length'"),
    ({"weights": {}, "bias": "x"}, "bias='x' must be"),
    ({"weights": {}, "code": "import os"}, "field 'code' is unknown"), ("{", "is not valid JSON"),
    ("[]", "must hold a JSON object"), ('{"auto": 3}', "auto Input should be a valid dictionary"),
    (None, "cannot be read"),
])  # fmt: skip
def test_a_bad_selector_is_refused(text: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    if isinstance(text, dict):
        refused(re.escape(says), LinearModeRouter, **text)
        text = json.dumps({"auto": text})
    if text is not None:
        path.write_text(text, "utf-8")
    refused(re.escape(says), read_selector, path)


def test_a_chooser_must_name_a_preset() -> None:
    presets = {"fast": Mode(), "deep": Mode(), "auto": Mode(auto=True)}
    assert choose(lambda _: "fast", PromptFacts("x"), presets) == ModeChoice("fast", "fast: <lambda>")
    for wrong in ("depe", "auto", None, 3, ()):
        refused("which is no preset", choose, lambda _, w=wrong: w, PromptFacts("x"), presets)
    with pytest.raises(ValueError, match="auto chose 'fast' because of 3, which is no text"):
        choose(lambda _: ModeChoice("fast", 3), PromptFacts("x"), presets)  # type: ignore[arg-type]


FEW = SamplingParams(max_tokens=6, ignore_eos=True)


QUIET: dict[str, Any] = {"kv_memory": "4MiB", "speculation": "off", "progress": False}


@pytest.fixture(scope="module")
def llm(tiny_chat: Path) -> Iterator[LLM]:
    with LLM(tiny_chat, **QUIET) as llm:
        yield llm


def test_answers_are_those_of_the_mode_taken_in_any_batch(llm: LLM) -> None:
    texts = (DEEP + FAST)[3:11]
    prompts = [[{"role": "user", "content": t}] for t in texts]
    asked = ["auto", "auto", "fast", "deep"] * 2
    for text, prompt, wish, out in zip(texts, prompts, asked, llm.generate(prompts, FEW, mode=asked)):
        mode, why = out.metrics.mode, out.metrics.decision
        assert out.token_ids == llm.generate(prompt, FEW, mode=mode).token_ids
        if wish == "auto":
            assert mode == ("deep" if text in DEEP else "fast") and why.startswith(f"{mode}: ")
        else:
            assert (mode, why) == (wish, "")


def test_a_chooser_sees_what_was_asked_and_nothing_else(llm: LLM) -> None:
    seen: list[PromptFacts] = []

    def mine(facts: PromptFacts) -> str:
        seen.append(facts)
        return "fast"

    talk = [
        {"role": "system", "content": "You are kind."}, {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "What is it?"},
    ]  # fmt: skip
    out = llm.chat(talk, FEW, mode=mine)
    llm.generate("as it stands", FEW, mode=mine)
    llm.generate([5, 6, 7], FEW, mode=mine)
    assert out.metrics.decision == "fast: mine"
    assert (seen[0].text, seen[0].turns, seen[0].words) == ("What is it?", 2, 8)
    assert (seen[1].text, seen[1].turns) == ("as it stands", 0)
    assert llm.tokenizer is not None and seen[2].text == llm.tokenizer.decode([5, 6, 7])
    llm.generate([np.int64(5), np.int64(6), np.int64(7)], FEW, mode=mine)
    assert seen[3].text == seen[2].text


def test_the_engines_own_chooser_can_be_replaced(tiny_chat: Path, tmp_path: Path) -> None:
    """By a file, a function, or what the checkpoint brings."""
    for file in tiny_chat.iterdir():
        (tmp_path / file.name).symlink_to(file)
    path = tmp_path / "fastslow.json"
    selector = LinearModeRouter(weights={"digits": 1.0}, bias=-1.5).model_dump()

    def modes(folder: Path, **options: Any) -> list[str]:
        with LLM(folder, **QUIET, **options) as llm:
            return [llm.chat(text, FEW, mode="auto").metrics.mode for text in ("Why 7?", "hi 77")]

    path.write_text(json.dumps({"auto": selector}), "utf-8")
    assert modes(tiny_chat, auto=path) == modes(tmp_path) == ["fast", "deep"]
    assert modes(tiny_chat, auto=lambda _: "deep") == ["deep", "deep"]
    path.write_text(json.dumps({"auto": None, "modes": {}}), "utf-8")
    assert modes(tmp_path) == ["deep", "fast"]
    path.write_text('{"auto": {"weights": {"luck": 1}}}', "utf-8")
    refused(r"fastslow.json: auto .*'luck' is unknown", LLM, tmp_path, **QUIET)
    wrong: Any = {"weights": {}}
    refused(r"^auto=.* must be a valid string or .* Path or .* Callable$", LLM, tiny_chat, auto=wrong)


def test_what_the_preset_itself_says_holds_in_either_mode(tiny_chat: Path) -> None:
    with LLM(tiny_chat, modes={"auto": {"latency_ms": 60000, "sampling": {"max_tokens": 2}}}, **QUIET) as llm:
        for text in ("hi", "What is 37*48?"):
            out = llm.chat(text, mode="auto")
            assert len(out.token_ids) <= 2 and out.metrics.target_ms == 60000
