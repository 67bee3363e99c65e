"""Which mode a request gets, and what it is told about that."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_moge
from hypothesis import given
from hypothesis import strategies as st
from tokenizers_tiny import write_bpe

from fastslow.engine.params import Mode, SamplingParams
from fastslow.llm import LLM
from fastslow.policies.auto import BUILT_IN, LinearModeRouter, choose, read_selector
from fastslow.policies.features import LABELS, count_words, features
from fastslow.policies.mode_router import ModeChoice, PromptFacts

DEEP = [
    "Why is the sky blue?",
    "What is 37*48?",
    "Write a python function that reverses a list.",
    "Anna has 3 apples and buys 12 more each day. How many does she have after 5 days?",
    "为什么天空是蓝色的？",
    "Prove that there are infinitely many primes.",
]
FAST = [
    "Hello!",
    "Who wrote Faust?",
    "Is the shop open on Sunday?",
    "What is the capital of France?",
    "Tell me a story.",
    "你好",
]


@pytest.mark.parametrize("text", DEEP)
def test_tasks_are_thought_over(text: str) -> None:
    assert BUILT_IN(PromptFacts(text)).mode == "deep"


@pytest.mark.parametrize("text", FAST)
def test_talk_is_fast(text: str) -> None:
    assert BUILT_IN(PromptFacts(text)).mode == "fast"


def test_the_callers_target_and_a_full_engine_speak_for_fast() -> None:
    text = "Why is the sky blue?"
    assert BUILT_IN(PromptFacts(text, latency_ms=100)).mode == "fast"
    assert BUILT_IN(PromptFacts(text, latency_ms=5000)).mode == "deep"
    assert BUILT_IN(PromptFacts(text, busy=0.9)).mode == "deep"
    choice = BUILT_IN(PromptFacts(text, busy=2.0))
    assert choice.mode == "fast" and "load -1.0" in choice.why


@given(st.text(max_size=300), st.integers(0, 50), st.floats(0, 10))
def test_any_text_has_features(text: str, turns: int, busy: float) -> None:
    seen = features(PromptFacts(text, turns=turns, busy=busy, latency_ms=1.0))
    assert seen.keys() == LABELS.keys()
    assert all(0 <= value <= 20 for value in seen.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Hello", 0.0), ("7 + 5", 0.2), ("4827 + 396", 2.5), ("38 * 412", 1.3), ("1" * 99, 10.0)],
)
def test_long_numbers_count_by_their_squares(text: str, expected: float) -> None:
    assert features(PromptFacts(text))["long_numbers"] == pytest.approx(expected)


def test_a_document_between_does_not_look_like_a_task() -> None:
    article = "The minister said that 3 of 5 plans were == to be dropped; why, nobody knew. " * 60
    seen = features(
        PromptFacts(f"Sum up this text. {article} Thank you very much indeed. " + "x" * 400)
    )
    assert seen["length"] > 9 and seen["numbers"] < 1.5


def test_words_are_counted_in_any_script() -> None:
    assert count_words("one two, 3 four") == 4
    assert count_words("为什么天空") == 5


def test_a_line_says_why_and_adds_up() -> None:
    for text in (*DEEP, *FAST):
        choice = BUILT_IN(PromptFacts(text))
        name, _, rest = choice.why.partition(": ")
        assert name == choice.mode
        terms, _, result = rest.rpartition(" = ")
        total = sum(float(x) for x in re.findall(r"[+-]\d+\.\d", terms))
        score = float(result.split()[0])
        assert total == pytest.approx(score, abs=0.05 * (1 + terms.count(",")))
        assert (score > 0) == (choice.mode == "deep") or abs(score) < 0.05


def test_means_and_threshold() -> None:
    selector = LinearModeRouter(
        weights={"length": 1.0}, means={"length": 2.0}, bias=0.5, threshold=1.0
    )
    assert selector.score({"length": 3.0}) == pytest.approx(1.5)
    assert selector(PromptFacts("a b c d e f g")).mode == "deep"
    assert selector(PromptFacts("a b c")).mode == "fast"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"weights": {"lenght": 1.0}}, "'lenght' is unknown; did you mean 'length'"),
        ({"weights": {}, "bias": "x"}, "bias='x' must be"),
        ({"weights": {}, "code": "import os"}, "field 'code' is unknown"),
    ],
)
def test_a_bad_selector_is_refused(fields: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        LinearModeRouter(**fields)
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps({"auto": fields}), "utf-8")
    with pytest.raises(ValueError, match=re.escape(says)):
        read_selector(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not valid JSON"),
        ("[]", "must hold a JSON object"),
        ('{"auto": 3}', "auto Input should be a valid dictionary"),
    ],
)
def test_a_bad_file_is_refused(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=says):
        read_selector(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_selector(tmp_path / "absent.json")


def test_a_chooser_must_name_a_preset() -> None:
    presets = {"fast": Mode(), "deep": Mode(), "auto": Mode(auto=True)}
    assert choose(lambda _: "fast", PromptFacts("x"), presets) == ModeChoice(
        "fast", "fast: <lambda>"
    )
    for wrong in ("depe", "auto", None, 3, ()):
        with pytest.raises(ValueError, match="which is no preset"):
            choose(lambda _, w=wrong: w, PromptFacts("x"), presets)  # type: ignore[misc]
    with pytest.raises(ValueError, match="auto chose 'fast' because of 3, which is no text"):
        choose(lambda _: ModeChoice("fast", 3), PromptFacts("x"), presets)  # type: ignore[arg-type]


TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
FEW = SamplingParams(max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moge")
    write_bpe(folder, TEMPLATE, 320)
    return write_moge(folder, vocab=320, num_hidden_layers=2, hidden_size=32)


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(folder, kv_memory="4MiB", speculation="off", progress=False) as llm:
        yield llm


def test_an_answer_is_that_of_the_mode_taken(llm: LLM) -> None:
    for text, mode in (("hi", "fast"), ("What is 37*48?", "deep")):
        out = llm.chat(text, FEW, mode="auto")
        assert out.metrics.mode == mode
        assert out.metrics.decision.startswith(f"{mode}: ")
        assert out.token_ids == llm.chat(text, FEW, mode=mode).token_ids
    assert llm.chat("hi", FEW, mode="fast").metrics.decision == ""


def test_modes_of_a_batch_are_those_alone(llm: LLM) -> None:
    prompts = [[{"role": "user", "content": t}] for t in (DEEP + FAST + DEEP)[:16]]
    modes = ["auto", "fast", "deep", "auto"] * 4
    batched = llm.generate(prompts, FEW, mode=modes, progress=False)
    alone = [llm.generate(p, FEW, mode=m) for p, m in zip(prompts, modes)]
    assert [o.token_ids for o in batched] == [o.token_ids for o in alone]
    assert [o.metrics.mode for o in batched] == [o.metrics.mode for o in alone]


def test_a_chooser_sees_what_was_asked_and_nothing_else(llm: LLM) -> None:
    seen: list[PromptFacts] = []

    def mine(situation: PromptFacts) -> str:
        seen.append(situation)
        return "fast"

    talk = [
        {"role": "system", "content": "You are kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "What is it?"},
    ]
    out = llm.chat(talk, FEW, mode=mine)
    llm.generate("as it stands", FEW, mode=mine)
    llm.generate([5, 6, 7], FEW, mode=mine)
    assert out.metrics.decision == "fast: mine"
    assert (seen[0].text, seen[0].turns, seen[0].words) == ("What is it?", 2, 8)
    assert (seen[1].text, seen[1].turns) == ("as it stands", 0)
    assert llm.tokenizer is not None and seen[2].text == llm.tokenizer.decode([5, 6, 7])
    llm.generate([np.int64(5), np.int64(6), np.int64(7)], FEW, mode=mine)
    assert seen[3].text == seen[2].text


def test_a_wrong_chooser_disturbs_nobody(llm: LLM) -> None:
    with pytest.raises(ValueError, match="auto chose 'slow', which is no preset"):
        llm.chat("hi", FEW, mode=lambda _: "slow")
    assert llm.chat("hi", FEW, mode="auto").metrics.mode == "fast"


def test_what_is_no_chooser_is_refused(folder: Path) -> None:
    wrongs: tuple[Any, ...] = (5, {"weights": {}})
    for wrong in wrongs:
        with pytest.raises(
            ValueError, match=r"^auto=.* must be a callable, a settings file or None$"
        ):
            LLM(folder, auto=wrong, progress=False)


def test_the_engines_own_chooser_can_be_replaced(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    selector = LinearModeRouter(weights={"digits": 1.0}, threshold=1.5)
    path.write_text(json.dumps({"auto": selector.model_dump()}), "utf-8")
    options: dict[str, Any] = {"kv_memory": "4MiB", "speculation": "off", "progress": False}
    with LLM(folder, auto=path, **options) as llm:
        assert llm.chat("Why 7?", FEW, mode="auto").metrics.mode == "fast"
        assert llm.chat("hi 77", FEW, mode="auto").metrics.mode == "deep"
    with LLM(folder, auto=lambda _: "deep", **options) as llm:
        assert llm.chat("hi", FEW, mode="auto").metrics.mode == "deep"


def test_what_the_preset_itself_says_holds_in_either_mode(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    own = {"modes": {"auto": {"latency_ms": 60000, "sampling": {"max_tokens": 2}}}}
    (tmp_path / "fastslow.json").write_text(json.dumps(own), "utf-8")
    with LLM(tmp_path, kv_memory="4MiB", speculation="off", progress=False) as llm:
        for text in ("hi", "What is 37*48?"):
            out = llm.chat(text, mode="auto")
            assert len(out.token_ids) <= 2 and out.metrics.target_ms == 60000
    assert Mode(name="auto").groups is None


def test_a_checkpoint_may_bring_its_own_selector(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    options: dict[str, Any] = {"kv_memory": "4MiB", "speculation": "off", "progress": False}
    selector = LinearModeRouter(weights={"digits": 1.0}, threshold=1.5)
    for brought, modes in ((selector.model_dump(), ["fast", "deep"]), (None, ["deep", "fast"])):
        (tmp_path / "fastslow.json").write_text(json.dumps({"auto": brought, "modes": {}}), "utf-8")
        with LLM(tmp_path, **options) as llm:
            asked = ("Why 7?", "hi 77")
            assert [llm.chat(text, FEW, mode="auto").metrics.mode for text in asked] == modes
    (tmp_path / "fastslow.json").write_text('{"auto": {"weights": {"luck": 1}}}', "utf-8")
    with pytest.raises(ValueError, match=r"fastslow.json: auto .*'luck' is unknown"):
        LLM(tmp_path, **options)
