"""Structured output as callers see it: what is answered, what is refused, and who is disturbed."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_moge
from gate import SOON, open_llm, settled
from grammar_tools import holds
from tokenizers_tiny import write_spm

from fastslow import LLM, GenerationError
from fastslow.engine.core.step import masks
from fastslow.engine.params import GrammarSpec, SamplingParams, Speculation
from fastslow.engine.sampling.grammars import grammar as grammar_module

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TEMPLATE = CHATML + "<|im_start|>assistant\n{{ '<think>\\n' }}"
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}, "on": {"type": "boolean"}},
    "required": ["x", "on"],
    "additionalProperties": False,
}
BUDGET = {"base": "deep", "thinking_budget": 6}


def asked(grammar: Any, **fields: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 90, "frequency_penalty": 1.0, "grammar": grammar, **fields})


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a mask comes late or a walk takes long nothing need be drafted: here every mask is waited for."""
    for limit in ("PATIENCE", "LONGEST_WAIT"):
        monkeypatch.setattr(masks, limit, SOON)
    monkeypatch.setattr(grammar_module, "LONG_WALK", SOON)


KINDS: list[dict[str, Any]] = [
    {"json_schema": POINT}, {"json_schema": json.dumps(POINT)}, {"regex": "[0-9]{3}-[a-c]{1,4}"},
    {"choice": ["yes", "no", "not now"]}, {"lark": 'start: "<" WORD ">"\nWORD: /[a-c]{2,5}/'},
    {"gbnf": 'root ::= "<" [a-c] [a-c] ">"'},
]  # fmt: skip


@pytest.mark.drafts(20, 15, nodes=2)
@pytest.mark.parametrize(
    ("mode", "drafter"),
    [("fast", "ngram"), ("fast", "auto"), ("deep", "self")]
    + [(BUDGET, drafter) for drafter in ("suffix", "ngram", "self")],
)
def test_answers_keep_to_their_grammar(llm: LLM, mode: Any, drafter: str) -> None:
    batch = [asked(grammar) for grammar in KINDS]
    outs = llm.chat(["hello"] * len(KINDS), batch, mode=mode, speculation=drafter, progress=False)
    plain = llm.chat(["hello"] * len(KINDS), batch, mode=mode, speculation="off", progress=False)
    assert [o.token_ids for o in outs] == [o.token_ids for o in plain]
    ended = 0
    for out, grammar in zip(outs, KINDS, strict=True):
        spec = GrammarSpec(**grammar)
        assert out.finish_reason in ("stop", "length")
        if out.finish_reason == "stop":
            ended += 1
            if spec.lark is not None or spec.gbnf is not None:
                spec = GrammarSpec(regex="<[a-c]{2,5}>")
            assert holds(spec, out.text), out.text
    if isinstance(mode, dict):  # the thought ends in time
        assert ended >= 5 and all(o.metrics.thinking_tokens == 6 for o in outs)
        assert all(o.metrics.thinking_ended == "budget" for o in outs)
    if drafter == "auto" and mode == "fast":
        assert sum(o.metrics.accepted for o in outs) > 0


def test_a_stream_gives_the_text_of_the_answer_alone(llm: LLM) -> None:
    mode = {"base": "deep", "thinking_budget": 4, "closing": "so:"}
    *pieces, last = llm.stream_chat("hello", asked({"json_schema": POINT}), mode=mode)
    assert last.output is not None
    text = "".join(piece.text for piece in (*pieces, last))
    assert text == last.output.text and json.loads(text).keys() == {"x", "on"}
    assert last.output.finish_reason == "stop" and last.output.stop_reason is None


@pytest.mark.parametrize("drafter", ["off", "ngram", "self", "suffix"])
@pytest.mark.parametrize("regex", ["<think>(ab){12}c", "(ab){6}<think>(ab){6}</think>c"])
@pytest.mark.usefixtures("patient")
def test_an_answer_may_spell_the_tags(llm: LLM, regex: str, drafter: str) -> None:
    """No thought comes in fast mode, so what looks like one is the answer: for drafts and counts, too."""
    wish = Speculation(drafter=drafter, nodes=9)
    params = asked({"regex": regex})
    for attempt in range(2):  # the second time "suffix" knows the answer
        *_, last = llm.stream_chat("hello", params, mode="fast", speculation=wish)
        out = last.output
        assert out is not None and out.finish_reason == "stop" and out.reasoning == ""
        assert out.text.startswith(("<think>", "abab")) and out.text.endswith("c")
        assert out.metrics.thinking_tokens == 0 and out.metrics.thinking_ended is None
        if drafter in ("ngram", "suffix"):  # every next token is certain, and drafted
            assert out.metrics.steps <= out.metrics.tokens / 4, attempt


@pytest.mark.drafts(100, 30)
def test_several_answers_and_seeds(llm: LLM) -> None:
    params = asked({"json_schema": POINT}, n=4, temperature=1.0, seed=5)
    mode = {"base": "deep", "thinking_budget": 3}
    out = llm.chat("hello", params, mode=mode, speculation="self")
    again = llm.chat("hello", params, mode=mode, speculation="off")
    assert [c.token_ids for c in out.choices] == [c.token_ids for c in again.choices]
    whole = [c.text for c in out.choices if c.finish_reason == "stop"]
    assert len(whole) >= 2 and all(holds(GrammarSpec(json_schema=POINT), text) for text in whole)
    assert len({tuple(c.token_ids) for c in out.choices}) > 1


def test_a_closing_phrase_that_continues_after_the_tag_gives_way(llm: LLM) -> None:
    mode = {"base": "deep", "thinking_budget": 2, "closing": "done</think>\n\nIn words:"}
    out = llm.chat("hello", asked({"choice": ["yes", "no"]}), mode=mode)
    assert out.finish_reason == "stop" and out.text in ("yes", "no")


@pytest.mark.drafts(8, 8)
@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("how", ["recompute", "keep", "restart"])
def test_an_answer_that_escalates_keeps_its_grammar(llm: LLM, how: str) -> None:
    mode = {"base": "fast", "thinking": "off", "escalate": {"below": 1.0, "window": 2, "to": "fast", "how": how}}
    out = llm.chat("hello", asked({"json_schema": POINT}), mode=mode, speculation="ngram")
    assert out.metrics.escalated_at is not None
    assert out.finish_reason == "stop" and holds(GrammarSpec(json_schema=POINT), out.text)


def test_stop_strings_and_lengths_end_it_and_log_probabilities_stay_the_models(llm: LLM) -> None:
    out = llm.chat("hello", asked({"json_schema": POINT}, stop='"on"'), mode="fast")
    assert out.finish_reason == "stop" and out.stop_reason == '"on"' and '"x"' in out.text
    out = llm.chat("hello", asked({"json_schema": POINT}, max_tokens=5), mode="fast")
    assert out.finish_reason == "length" and len(out.token_ids) == 5
    out = llm.generate("hello", asked({"choice": ["yes", "no"]}, logprobs=2), mode="fast")
    free = llm.generate("hello", asked(None, logprobs=2, max_tokens=1), mode="fast")
    assert out.logprobs is not None and free.logprobs is not None
    top = max(free.logprobs[0], key=free.logprobs[0].__getitem__)
    assert out.logprobs[0][top] == pytest.approx(free.logprobs[0][top]) and out.token_ids[0] in out.logprobs[0]


@pytest.mark.parametrize(("grammar", "said"), [
    ({}, "exactly one of json_schema"),
    ({"choice": ["a"] * 1001}, "at most 1000 items"),
    ({"regex": "a" * 262_145}, "at most 262144 characters"),
    ({"choice": ["a" * 200_000, "b" * 200_000]}, "more than 262144 characters"),
    ({"json_schema": {"a": float("nan")}}, "no JSON"),
    ({"json_schema": {"properties": {f"p{i}": True for i in range(2001)}}}, "at most 2000 are"),
])  # fmt: skip
def test_a_bad_grammar_is_one_sentence(llm: LLM, grammar: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        llm.chat("hello", asked(grammar))
    assert "\n" not in str(error.value)


def test_a_grammar_that_becomes_too_complex_ends_its_own_request(llm: LLM) -> None:
    wild = asked({"regex": "((((a{1,999}){1,999}){1,999}){1,999}){999}"}, max_tokens=60)
    with pytest.raises(GenerationError, match=r"^1 request\(s\) failed: .*the grammar stopped: ") as error:
        llm.generate(["hello"] * 3, [wild, asked({"choice": ["yes"]}), asked(None)], progress=False)
    outs = error.value.outputs
    assert outs[0].finish_reason == "error" and outs[1].text == "yes"
    assert outs[0].choices[0].error is not None and outs[1].choices[0].error is None
    assert outs[2].finish_reason in ("stop", "length")
    with pytest.raises(GenerationError, match="the grammar stopped: "):
        list(llm.stream("hello", wild))
    assert settled(llm)


def test_without_the_package_or_a_tokenizer_a_grammar_is_refused(
    folder: Path, tiny_moge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = pytest.raises(ValueError, match="needs a tokenizer, and this checkpoint has none")
    with open_llm(tiny_moge) as other, without:
        other.generate([5, 6], asked({"json_object": True}))
    monkeypatch.setitem(sys.modules, "llguidance", None)
    missing = pytest.raises(ValueError, match=r"pip install 'fastslow\[grammar\]'")
    with open_llm(folder) as other, missing:
        other.generate("hello", asked({"json_object": True}))


@pytest.mark.drafts(60, 60)
def test_sentencepiece_models_answer_in_json(tmp_path: Path) -> None:
    with open_llm(write_moge(tmp_path, vocab=write_spm(tmp_path), num_hidden_layers=2, hidden_size=32)) as other:
        params = [asked({"json_schema": POINT}, seed=seed) for seed in range(8)]
        outs = other.generate(["hello"] * 8, params, mode="fast", progress=False)
        whole = [out for out in outs if out.finish_reason == "stop"]
        assert whole and all(holds(GrammarSpec(json_schema=POINT), out.text) for out in whole)
        assert other.generate("hello", asked({"choice": ["yes", "no"]}), mode="fast").text in ("yes", "no")
