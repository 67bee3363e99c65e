"""Steering of a thought, as callers see it: room for the answer, circles, warnings, turns, phases."""

from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_chat
from gate import open_llm
from hybrid_model import LAYOUT
from refusals import refused

from fastslow import LLM, Loop, Mode, Output, Phase, ResumeState, SamplingParams, Speculation
from fastslow.engine.model.shape import DecoderShape
from fastslow.engine.params import GrammarSpec
from fastslow.engine.text.switches import find_switch
from fastslow.policies.turns import MOST_TURNS, Turns

OPEN, CLOSE, DOT = 3, 4, 18
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}<think>"
OPTIONS = {"thinking_tags": ("<think>", "</think>")}
TOLD = (  # as Seed-OSS
    "{% if thinking_budget is defined %}You have {{ thinking_budget }} tokens. {% endif %}" + TEMPLATE
)
CHAT: list[dict[str, Any]] = [{"role": "user", "content": "The quick"}]
SIXTY = SamplingParams(max_tokens=60, ignore_eos=True)
DOTS = SamplingParams(max_tokens=90, ignore_eos=True, logit_bias={DOT: 100.0})
HOT = {"max_tokens": 60, "ignore_eos": True, "temperature": 0.9, "seed": 5}


def ended(out: Output) -> tuple[int, str | None]:
    return out.metrics.thinking_tokens, out.metrics.thinking_ended


@pytest.mark.drafts(12, 6, nodes=2)
@pytest.mark.parametrize("speculation", ["off", "ngram", "self"])
def test_deep_leaves_room_for_an_answer(llm: LLM, speculation: str) -> None:
    def ask(params: SamplingParams, **mode: Any) -> Output:
        return llm.generate(CHAT, params, mode={"base": "deep", **mode}, speculation=speculation)

    usual = ask(SIXTY)
    assert ended(usual) == (44, "room") and usual.text, "a quarter of 60 stays"
    assert usual.token_ids[44] == CLOSE and len(usual.token_ids) == 60
    assert ended(ask(SIXTY, answer_room=None)) == (60, "length")
    assert ended(ask(SIXTY, answer_room=7)) == (52, "room")
    assert ended(ask(SIXTY, answer_room=500)) == (0, "room"), "no room for a thought"
    phrase = ask(SIXTY, closing="\nSo:\n", answer_room=9)
    assert phrase.token_ids.index(CLOSE) + 1 == 51 and phrase.reasoning.endswith("\nSo:\n") and phrase.text
    assert phrase.metrics.put_in_tokens == phrase.choices[0].sources.count("forced") > 5
    few = ask(SamplingParams(max_tokens=3, ignore_eos=True), closing="\nSo:\n")
    assert few.token_ids.index(CLOSE) == 1, "the tag without the phrase"
    plain = ask(SIXTY, answer_room=None, thinking="auto")
    assert usual.token_ids[:44] == plain.token_ids[:44]


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_few_tokens_are_an_answer(tmp_path: Path, most: int, opened: bool) -> None:
    template = TEMPLATE if opened else TEMPLATE.removesuffix("<think>")
    params = SamplingParams(max_tokens=most, ignore_eos=True, logit_bias={OPEN: 100.0})
    with open_llm(write_chat(tmp_path, template), **OPTIONS) as llm:
        for speculation in ("off", "ngram"):
            out = llm.generate(CHAT, params, mode="deep", speculation=speculation)
            assert len(out.token_ids) == most and out.text
            begun = [OPEN, CLOSE] if not opened else [out.token_ids[0], CLOSE]
            assert out.token_ids[:2] == begun if most == 3 else CLOSE not in out.token_ids
        text = llm.generate("The quick", params, mode="deep")
        assert text.text and (OPEN in text.token_ids) == (most == 3)
        if most == 1:
            with pytest.raises(ValueError, match="^answer_room='auto' cannot be kept: the prompt"):
                llm.generate("Think.<think>", params, mode="deep", allow_special=True)
        schema = params.model_copy(update={"grammar": GrammarSpec(regex="[a-z]{1,9}")})
        assert llm.generate(CHAT, schema, mode="deep").text


@pytest.mark.drafts(6, 6)
@pytest.mark.parametrize("most", [4, 5, 8])
def test_tags_alone_are_no_answer(llm: LLM, most: int) -> None:
    """The model would open and close thoughts to the end."""
    tags = {OPEN: 100.0, CLOSE: 99.0}
    drawn = {"temperature": 0.9, "seed": 7}  # others may end in a token without text
    for shape in ({"ignore_eos": True}, drawn, {"frequency_penalty": 2.0}):
        params = SamplingParams(max_tokens=most, logit_bias=tags, **shape)
        for mode in ({"thinking_budget": 0}, {"confidence": {"every": 1}}, {}):
            for speculation in ("off", "ngram"):
                out = llm.generate(CHAT, params, mode={"base": "deep", **mode}, speculation=speculation)
                assert out.text and len(out.token_ids) == most, out.token_ids


def test_an_end_token_closes_the_thought_where_an_answer_must_come(llm: LLM) -> None:
    assert llm.tokenizer is not None
    end = next(iter(llm.tokenizer.eos_ids))
    params = SamplingParams(max_tokens=40, logit_bias={end: 100.0}, frequency_penalty=2.0)
    for speculation in ("off", "ngram", "self"):
        out = llm.generate(CHAT, params, mode="deep", speculation=speculation)
        assert out.token_ids[0] == CLOSE and ended(out) == (0, "model")
        assert out.token_ids[-1] == end and out.text.strip(), "something is answered"
    assert llm.generate(CHAT, params, mode=Mode()).token_ids == [end]
    own = params.model_copy(update={"stop_token_ids": (end,)})
    assert llm.generate(CHAT, own, mode="deep").token_ids == [end], "the caller's own stop"


def test_an_end_token_puts_in_a_whole_tag_of_several_tokens(folder: Path) -> None:
    """Not its first token only, behind which the thought would run on."""
    with open_llm(folder, thinking_tags=("<reason>", "</reason>")) as llm:
        assert llm.tokenizer is not None
        end = next(iter(llm.tokenizer.eos_ids))
        closed = llm.tokenizer.encode("</reason>", add_special=False)
        params = SamplingParams(max_tokens=40, logit_bias={end: 100.0}, frequency_penalty=2.0)
        for shape in ({}, {"temperature": 0.9, "seed": 1}):
            own = params.model_copy(update=shape)
            whole = llm.generate("Think. <reason>", own, mode="deep", speculation="off")
            assert whole.token_ids[: len(closed)] == closed and ended(whole) == (0, "model")
            assert whole.metrics.put_in_tokens == len(closed) - 1 and whole.text.strip()
            assert whole.token_ids[-1] == end and len(whole.token_ids) < 40
            for cut in range(1, len(whole.token_ids) + 1):
                state = ResumeState([whole.token_ids[:cut]])
                out = llm.submit("Think. <reason>", own, mode="deep", answered=state).result()
                assert out.token_ids == whole.token_ids and out.metrics.put_in_tokens == len(closed) - 1


@pytest.mark.parametrize("speculation", ["off", "ngram"])
def test_the_room_of_an_answer_is_not_filled_with_tags(llm: LLM, speculation: str) -> None:
    tags = {OPEN: 100.0, CLOSE: 99.0}
    for mode in ({"thinking_budget": 3}, {}):
        wish = {"base": "deep", "answer_room": 20, **mode}
        params = SamplingParams(max_tokens=40, logit_bias=tags, ignore_eos=True)
        out = llm.generate(CHAT, params, mode=wish, speculation=speculation)
        assert not {OPEN, CLOSE} & {*out.token_ids[-19:]} and len(out.token_ids) == 40


def test_circles_end_thoughts_and_where_asked_answers(llm: LLM) -> None:
    out = llm.generate(CHAT, DOTS, mode=Mode(loop=Loop()), speculation="ngram")
    assert ended(out) == (40, "loop") and out.finish_reason == "length"
    both = llm.generate(CHAT, DOTS, mode={"loop": {"answer": True, "least": 20}})
    assert ended(both) == (20, "loop") and both.finish_reason == "loop" and len(both.token_ids) == 41
    off = llm.generate(CHAT, DOTS, mode={"base": "deep", "loop": False, "answer_room": None})
    assert ended(off) == (90, "length")


def test_circles_end_answers_of_a_model_that_does_not_think(tmp_path: Path) -> None:
    folder = write_chat(tmp_path, "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    path = folder / "tokenizer.json"
    path.write_text(path.read_text("utf-8").replace("think>", "thonk>"), "utf-8")
    with open_llm(folder) as llm:
        out = llm.generate(CHAT, DOTS, mode=Mode(loop=Loop(answer=True)))
        assert (out.finish_reason, len(out.token_ids)) == ("loop", 40)
        assert llm.generate(CHAT, DOTS, mode=Mode(loop=Loop())).finish_reason == "length"


def test_a_warning_and_an_announced_budget(tmp_path: Path) -> None:
    mode = {"thinking_budget": 30, "warn_at": 0.5, "warning": " Hm.", "thinking": "on"}
    with open_llm(write_chat(tmp_path, TOLD), **OPTIONS) as llm:
        out = llm.generate(CHAT, DOTS, mode=mode)
        assert out.prompt == "You have 30 tokens. The quick<think>"
        assert out.reasoning == "." * 15 + " Hm." + "." * 11 and ended(out) == (30, "budget")
        assert out.metrics.put_in_tokens == out.choices[0].sources.count("forced") == 5
        told = llm.chat(CHAT, DOTS, mode=mode, chat_template_kwargs={"thinking_budget": 7})
        assert told.prompt is not None and "You have 7 tokens" in told.prompt
        assert llm.chat(CHAT, DOTS, mode=Mode()).prompt == "The quick<think>"
        turn = llm.chat(CHAT, DOTS, mode={**mode, "turn_budget": 20})
        assert turn.prompt is not None and "You have 20 tokens" in turn.prompt
        assert turn.reasoning.startswith("." * 10 + " Hm.") and ended(turn) == (20, "turn")
    assert find_switch(lambda chat, given: "always", "thinking_budget").budget == ""


def test_calls_of_a_turn_share_its_budget(llm: LLM) -> None:
    mode = {"base": "deep", "turn_budget": 30}
    first = llm.generate(CHAT, SIXTY, mode=mode)
    assert ended(first) == (30, "turn") and first.metrics.turn_budget_left == 0
    thought = "I look it up. I look it up"
    assert llm.tokenizer is not None
    spent = len(llm.tokenizer.encode(thought, add_special=False))
    said = {"role": "assistant", "content": "", "reasoning_content": thought}
    turn = [*CHAT, said, {"role": "tool", "content": "42"}]
    second = llm.generate(turn, SIXTY, mode=mode)
    assert ended(second) == (30 - spent, "turn") and second.metrics.turn_budget_left == 0
    wide = llm.generate(turn, SIXTY, mode={**mode, "turn_budget": 500, "thinking_budget": 4})
    assert ended(wide) == (4, "budget") and wide.metrics.turn_budget_left == 500 - spent - 4
    later = [*turn, {"role": "assistant", "content": "It is 42."}, *CHAT]
    assert ended(llm.generate(later, SIXTY, mode=mode)) == (30, "turn"), "a new turn"
    assert llm.generate(CHAT, SIXTY, mode="deep").metrics.turn_budget_left is None


def test_a_turn_may_be_named(llm: LLM) -> None:
    mode: dict[str, Any] = {"base": "deep", "turn_budget": 30}
    short = {**mode, "thinking_budget": 12}
    left = [llm.generate(CHAT, SIXTY, mode=short, turn="order-17").metrics.turn_budget_left for _ in range(3)]
    assert left == [18, 6, 0] and ended(llm.generate(CHAT, SIXTY, mode=mode, turn="order-17")) == (0, "turn")
    assert ended(llm.generate(CHAT, SIXTY, mode=mode, turn="order-18")) == (30, "turn")
    assert ended(llm.generate(CHAT, SIXTY, mode=mode, turn="order-17", memory_key="someone else")) == (30, "turn")
    *begun, last = llm.stream(CHAT, SIXTY, mode=mode, turn="order-19", speculation="off")
    assert begun[0].decided is not None and begun[0].decided.turn_left == 30
    state = ResumeState([begun[0].token_ids], [begun[0].decided])
    again = llm.generate(CHAT, SIXTY, mode=mode, turn="order-19", answered=state)
    assert last.output is not None and again.token_ids == last.output.token_ids
    stream = llm.stream(CHAT, SIXTY, mode=mode, turn="left", speculation="off")
    for _, piece in zip(range(5), stream):
        assert piece.token_ids
    stream.close()
    assert stream.output is not None
    rest = llm.generate(CHAT, SIXTY, mode=mode, turn="left")
    assert rest.metrics.thinking_tokens == 30 - stream.output.metrics.thinking_tokens < 30
    assert ended(llm.generate(CHAT, SIXTY, mode=mode, turn="left", share="b")) == (30, "turn")
    refused("^turn=3 must be a valid string", llm.generate, CHAT, SIXTY, mode=mode, turn=3)


@pytest.mark.parametrize("how", ["recompute", "keep", "restart"])
def test_budgets_of_a_mode_that_is_escalated_to(folder: Path, how: str) -> None:
    """A call's own budget binds every mode, a preset's binds itself."""
    unsure = {"below": 1.0, "window": 1, "to": "turned", "how": how}
    modes = {
        "turned": {"base": "deep", "turn_budget": 12, "answer_room": None},
        "quick": {"base": "fast", "thinking_budget": 3, "escalate": unsure},
    }
    params = SIXTY.model_copy(update={"logit_bias": {OPEN: 100.0}})
    with open_llm(folder, modes=modes, **OPTIONS) as llm:

        def ask(**options: Any) -> tuple[int, int | None]:
            made = llm.generate(CHAT, params, **options).metrics
            assert made.escalated_at == 1
            return made.thinking_tokens, made.turn_budget_left

        assert ask(mode="quick") == (12, 0) and ask(mode={"base": "quick", "turn_budget": 20}) == (20, 0)
        assert ask(mode={"base": "quick", "thinking_budget": 7}) == (7, 5)
        assert ask(mode={"base": "quick", "thinking_budget": 7}, turn="a") == (7, 5)
        assert ask(mode="quick", turn="a") == (5, 0)


def test_calls_of_a_turn_at_once_share_its_budget(llm: LLM) -> None:
    mode: dict[str, Any] = {"base": "deep", "turn_budget": 30}

    def spent(params: SamplingParams = SIXTY, **more: Any) -> int:
        calls = [llm.submit(CHAT, params, mode={**mode, **more}, turn="at once", share=str(more)) for _ in range(12)]
        return sum(call.result().metrics.thinking_tokens for call in calls)

    assert spent() == spent(thinking_budget=12) == 30, "each has what the others leave"
    out = llm.generate(CHAT, {**HOT, "n": 3}, mode={**mode, "thinking_budget": 12}, turn="several")
    assert [choice.metrics.thinking_tokens for choice in out.choices] == [12] * 3
    assert ended(llm.generate(CHAT, SIXTY, mode=mode, turn="several")) == (18, "turn")
    refused("cannot be used", llm.generate, CHAT, {**HOT, "grammar": {"regex": "("}}, mode=mode, turn="failed")
    left = llm.submit(CHAT, SIXTY, mode=mode, turn="failed")
    left.cancel()
    spent_there = left.result().metrics.thinking_tokens
    assert ended(llm.generate(CHAT, SIXTY, mode=mode, turn="failed")) == (30 - spent_there, "turn")


def test_names_of_one_share_push_out_its_own() -> None:
    turns = Turns()
    turns.of("a", None, "order-17").spent = 5
    for n in range(MOST_TURNS + 5):
        turns.of("b", None, str(n)).spent = n
    assert turns.of("a", None, "order-17").spent == 5
    assert turns.of("b", None, "1").spent == 0 < turns.of("b", None, "17").spent
    assert turns.of("b", "other", "17").spent == turns.of(None, None, "17").spent == 0


def test_a_thought_that_nothing_opened_counts_for_its_turn(tmp_path: Path) -> None:
    params = SIXTY.model_copy(update={"logit_bias": {DOT: 100.0, CLOSE: 91.0}, "frequency_penalty": 2.0})
    with open_llm(write_chat(tmp_path, TEMPLATE.removesuffix("<think>")), **OPTIONS) as llm:
        spent = 0
        for _ in range(2):
            made = llm.generate(CHAT, params, mode=Mode(turn_budget=30), turn="a").metrics
            assert made.thinking_tokens > 3
            spent += made.thinking_tokens
            assert made.turn_budget_left == 30 - spent


def test_a_later_thought_is_closed_and_counted_where_nothing_opened_the_first(tmp_path: Path) -> None:
    with open_llm(write_chat(tmp_path, TEMPLATE.removesuffix("<think>")), **OPTIONS) as llm:
        said = [60, 61, 62, CLOSE, 63, OPEN, *[64] * 4]
        mode = {"thinking": "on", "thinking_budget": 4, "closing": " so", "turn_budget": 90}
        out = llm.submit(CHAT, SIXTY, mode=mode, turn="a", answered=ResumeState([said])).result()
        assert ended(out) == (7, "budget") and out.reasoning.endswith(" so") and out.text
        assert out.metrics.put_in_tokens == out.choices[0].sources.count("forced") > 1
        assert out.metrics.turn_budget_left == 83
        again = llm.generate(CHAT, SIXTY, mode={**mode, "thinking_budget": None}, turn="a")
        assert again.metrics.turn_budget_left == 83 - again.metrics.thinking_tokens


@pytest.mark.drafts(12, 2, nodes=2)
@pytest.mark.parametrize("speculation", ["off", "ngram", "suffix|self"])
def test_thought_and_answer_are_sampled_each_in_its_own_way(llm: LLM, speculation: str) -> None:
    def ask(params: dict[str, Any], **mode: Any) -> Output:
        return llm.generate(CHAT, params, mode={"thinking_budget": 20, **mode}, speculation=speculation)

    cold = {**HOT, "temperature": 0}
    drawn, greedy = ask(HOT), ask(cold)
    sober = ask(HOT, answer={"temperature": 0})
    assert sober.token_ids[:21] == drawn.token_ids[:21] and sober.token_ids != drawn.token_ids
    lively = ask(cold, answer={"temperature": 0.9})
    assert lively.token_ids[:21] == greedy.token_ids[:21] and lively.token_ids != greedy.token_ids
    assert ask(cold, thought={"temperature": 0.9}).token_ids == sober.token_ids
    both = ask({**HOT, "temperature": 5.0}, thought={"temperature": 0.9}, answer={"temperature": 0})
    assert both.token_ids == sober.token_ids
    preset = Mode(thinking_budget=20, thought=Phase(temperature=0.9), answer=Phase(temperature=0))
    assert llm.generate(CHAT, HOT, mode=preset).token_ids == sober.token_ids


@pytest.mark.drafts(100, 80, nodes=None)
def test_thought_and_answer_are_drafted_each_in_its_own_way(llm: LLM) -> None:
    params = DOTS.model_copy(update={"max_tokens": 60})
    mode = {"thinking_budget": 30}
    plain = llm.generate(CHAT, params, mode=mode, speculation="off")
    for within, after in (("off", "ngram"), ("ngram", "off"), ("ngram", "suffix"), ("self", "ngram")):
        each = {part: {"speculation": {"drafter": name, "nodes": 4}} for part, name in
            (("thought", within), ("answer", after))}  # fmt: skip
        out = llm.generate(CHAT, params, mode={**mode, **each})
        assert out.token_ids == plain.token_ids
        names = [{*out.choices[0].sources[:30]} - {"target"}, {*out.choices[0].sources[31:]} - {"target"}]
        assert names == [{within} - {"off"}, {after} - {"off"}]
    call, quiet = Speculation(drafter="ngram", nodes=4), {**mode, "thought": {"speculation": "off"}}
    one = llm.generate(CHAT, params, mode=quiet, speculation=call)
    assert "ngram" not in one.choices[0].sources[:30] and "ngram" in one.choices[0].sources


@pytest.mark.parametrize(("fields", "said"), [
    ({"answer_room": -1}, "answer_room.* must be greater than or equal to 0"),
    ({"answer_room": "much"}, "^answer_room='much' must be a valid integer or 'auto'$"),
    ({"loop": 3}, "loop=3 must "),
    ({"loop": {"times": 1}}, "loop.times=1 must be greater than or equal to 2"),
    ({"loop": {"time": 4}}, "field 'loop.time' is unknown"),
    ({"confidence": 1}, "confidence=1 must "),
    ({"confidence": {"times": 1, "sure": 0}}, "times=1 needs sure above 0"),
    ({"confidence": {"tokens": 65}}, "confidence.tokens=65 must be less than or equal to 64"),
    ({"warn_at": 1.0}, "warn_at=1.0 must be less than 1"),
    ({"warn_at": 0.5, "thinking_budget": 9, "warning": "a</think>"}, "must not hold the tag"),
    ({"turn_budget": 1.5}, "turn_budget=1.5 must be a valid integer"),
    ({"thought": {"temperature": -1}}, "thought.temperature=-1 must be greater than or equal"),
    ({"thought": {"n": 2}}, "field 'thought.n' is unknown"),
    ({"answer": {"speculation": "nothing"}}, "nothing"),
    ({"loop": {"tims": 4}}, r"^field 'loop.tims' is unknown; did you mean 'times'\?$"),
    ({"thought": {"speculation": {"nod": 4}}}, "nod' is unknown; did you mean 'nodes'"),
    ({"thought": {"speculation": {"accept": "block"}}}, "accept='block' must be left out in a part"),
    ({"answer": {"speculation": {"step_score": 0.5}}}, "step_score=0.5 must be left out"),
])  # fmt: skip
def test_one_sentence_for_what_does_not_fit(llm: LLM, fields: dict[str, Any], said: str) -> None:
    refused(said, llm.generate, CHAT, SIXTY, mode=fields)


def test_a_probe_fits_beside_running_states(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DecoderShape, "state_layout", property(lambda _: LAYOUT))
    said = "^confidence asks with .* tokens for 48, and a model with running states has room for 48 in sum"
    refused(said, llm.generate, CHAT, SIXTY, mode={"base": "deep", "confidence": {"tokens": 48}})


def test_the_fields_of_auto_hold_in_the_mode_that_it_escalates_to() -> None:
    with LLM("abacus", progress=False) as llm:
        wish = {"base": "auto", "thinking_budget": 4}
        out = llm.chat("What is 98 * 76?", SamplingParams(max_tokens=100), mode=wish)
    assert (out.metrics.mode, out.metrics.thinking_tokens) == ("deep", 4)
