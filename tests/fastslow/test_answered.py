"""A call that continues an answer so far gives the answer that it would have given."""

from collections.abc import Sequence
from typing import Any

import pytest
from gate import StopThinking
from pairs import pairwise

from fastslow import LLM, Completion, Decided, Mode, Output, Piece, ResumeState, SamplingParams

OPEN, CLOSE = 3, 4  # <think>, </think>
CHAT = [{"role": "user", "content": "The quick brown fox"}]
TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    "{% if enable_thinking is defined and enable_thinking %}<think>{% endif %}"
)
PRESETS = {
    "modes": {
        "short": {"thinking": "on", "thinking_budget": 5, "closing": "\nNow.\n"},
        "settled": {"thinking": "on", "confidence": {"every": 1, "tokens": 1, "sure": 0}, "closing": "\nNow" * 30},
        "unsure": {"escalate": {"below": 0.5}},
        "quick": {"latency_ms": 0.001, "may_shorten": ["groups"]},
    }
}
PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {"repetition_penalty": 1.2},
    "seeded": {"temperature": 0.9, "seed": 4},
    "several": {"temperature": 1.0, "seed": 8, "n": 3},
    "stop": {"temperature": 1.0, "seed": 8, "n": 3, "stop": ["e", "us", "th "]},
    "logprobs": {"logprobs": 2, "prompt_logprobs": 1, "n": 2, "seed": 1, "temperature": 0.7},
    "grammar": {"grammar": {"regex": "[a-c]{2,4}é[0-9]{2}"}, "ignore_eos": False},
}


MODES = ("fast", "deep", "short")
DRAFTED = [pytest.param(mode, marks=pytest.mark.drafts(30, 15)) for mode in MODES]
# it asks in every step, and no token that came while it did is counted as a draft's
SETTLED = pytest.param("settled", marks=pytest.mark.drafts(30, 0))
SELF = {"drafter": "self", "groups": 3}


def sampling(name: str) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 16, "ignore_eos": True, **PARAMS[name]})


def said(one: Completion) -> tuple[Any, ...]:
    return one.text, one.reasoning, one.token_ids, one.finish_reason, one.stop_reason


def streamed(llm: LLM, wish: SamplingParams, **options: Any) -> tuple[list[Piece], Output]:
    *pieces, last = llm.stream(CHAT, wish, **options)
    assert last.output is not None
    return pieces, last.output


def same(ours: Output, whole: Output) -> None:
    assert [said(one) for one in ours.choices] == [said(one) for one in whole.choices]
    assert ours.prompt_token_ids == whole.prompt_token_ids
    for one, other in zip(ours.choices, whole.choices, strict=True):
        for name in ("tokens", "prompt_tokens", "thinking_tokens", "thinking_ended"):
            assert getattr(one.metrics, name) == getattr(other.metrics, name), name
        close(one.logprobs, other.logprobs)
    close(ours.prompt_logprobs, whole.prompt_logprobs)


def close(ours: Sequence[Any] | None, theirs: Sequence[Any] | None) -> None:
    assert (ours is None) == (theirs is None)
    for one, other in zip(ours or (), theirs or (), strict=True):
        assert one == (None if other is None else pytest.approx(other, abs=1e-4))


@pytest.mark.parametrize("mode", [*DRAFTED[::2], SETTLED])
@pytest.mark.parametrize("name", PARAMS)
def test_it_is_the_whole_answer_from_every_token_on(llm: LLM, name: str, mode: str) -> None:
    wish = sampling(name)
    whole = llm.generate(CHAT, wish, mode=mode, speculation=SELF)
    longest = max(len(one.token_ids) for one in whole.choices)
    assert longest > 4
    handles = []
    for cut in range(longest + 2 * len(whole.choices) - 1):
        tokens = [one.token_ids[: max(0, cut - 2 * i)] for i, one in enumerate(whole.choices)]
        options: dict[str, Any] = {"mode": mode, "speculation": SELF}
        options["answered"] = ResumeState(tokens)
        handles.append(llm.submit(CHAT, wish, **options))
    for cut, handle in enumerate(handles):
        output = handle.result()
        same(output, whole)
        first = output.choices[0]
        assert first.metrics.answered_tokens == min(cut, len(first.token_ids))
        assert first.sources[:cut] == ["answered"] * first.metrics.answered_tokens
        assert "answered" not in first.sources[cut:]
    assert all(one.metrics.tokens_per_step == 0.0 for one in output.choices), "all was over"


@pytest.mark.drafts(5, 2)
@pytest.mark.parametrize(("name", "speculation", "mode"), [
    *pairwise([*PARAMS], ["off", SELF, {**SELF, "drafter": "suffix|self"}], MODES),
    *((name, "off", "settled") for name in PARAMS),
])  # fmt: skip
def test_streams_begin_with_all_that_there_is(llm: LLM, name: str, speculation: Any, mode: str) -> None:
    wish = sampling(name)
    _, whole = streamed(llm, wish, mode=mode, speculation=speculation)
    tokens = [one.token_ids[:7] for one in whole.choices]
    options = {"mode": mode, "speculation": speculation, "answered": ResumeState(tokens)}
    pieces, output = streamed(llm, wish, **options)
    same(output, whole)
    for index, one in enumerate(output.choices):
        own = [piece for piece in pieces if piece.index == index]
        assert [token for piece in own for token in piece.token_ids] == one.token_ids
        assert own[0].token_ids[: len(tokens[index])] == tokens[index]
        assert "".join(piece.text for piece in own) == one.text
        assert "".join(piece.reasoning for piece in own) == one.reasoning
        assert [s for piece in own for s in piece.sources] == one.sources
        if one.logprobs is not None:
            assert [p for piece in own for p in piece.logprobs or ()] == one.logprobs


def test_the_chosen_mode_stays(llm: LLM) -> None:
    """Another engine is busier, and would choose otherwise."""
    wish = sampling("seeded")
    pieces, whole = streamed(llm, wish, mode="auto")
    decided = pieces[0].decided
    assert decided is not None and decided.mode in ("fast", "deep") and decided.why
    assert all(piece.decided is None for piece in pieces[1:])
    other = "deep" if decided.mode == "fast" else "fast"
    for one in (decided, Decided(other, "it was so", decided.units)):
        pieces, output = streamed(llm, wish, mode="auto", answered=ResumeState([whole.token_ids[:5]], [one]))
        assert output.metrics.mode == one.mode and output.metrics.decision == one.why
        again = pieces[0].decided
        assert again is not None and again[:2] == one[:2]
        if one is decided:
            same(output, whole)
        else:
            assert output.prompt_token_ids == llm.generate(CHAT, wish, mode=other).prompt_token_ids
    named = streamed(llm, wish, mode="fast")[0]
    assert all(piece.decided is None for piece in named)


def test_experts_that_were_cut_stay_cut(llm: LLM) -> None:
    wish = sampling("greedy")
    pieces, whole = streamed(llm, wish, mode="quick")
    decided = pieces[0].decided
    assert decided is not None and decided.mode == "" and decided.units is not None
    assert whole.metrics.groups == decided.units
    for units in {decided.units, 2}:
        answered = ResumeState([whole.token_ids[:6]], [decided._replace(units=units)])
        output = llm.submit(CHAT, wish, mode="quick", answered=answered).result()
        assert output.metrics.groups == units
        if units == decided.units:
            same(output, whole)


@pytest.mark.parametrize("steps", [2, 3])
def test_a_thought_that_its_caller_closed_stays_closed(llm: LLM, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wish = SamplingParams(max_tokens=24, ignore_eos=True, temperature=0.8, seed=2)
    mode = Mode(base="deep", closing=" so")
    with monkeypatch.context() as patch:
        StopThinking(llm, patch, steps)
        whole = llm.generate(CHAT, wish, mode=mode, speculation="off")
    assert whole.metrics.thinking_ended == "caller" and CLOSE in whole.token_ids
    assert whole.choices[0].sources.index("forced") == steps
    for cut in range(steps, len(whole.token_ids) + 1):
        answered = ResumeState([whole.token_ids[:cut]], stopped=[steps])
        same(llm.submit(CHAT, wish, mode=mode, answered=answered).result(), whole)


@pytest.mark.parametrize("steps", [3, 4])
def test_a_stop_while_the_phrase_is_put_in_changes_nothing(
    llm: LLM, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The phrase of a settled thought takes several steps; another engine goes on after each of them."""
    wish = SamplingParams(max_tokens=140, ignore_eos=True, repetition_penalty=1.2, logprobs=0)
    free = llm.generate(CHAT, wish, mode="settled", speculation="off")
    with monkeypatch.context() as patch:
        stop = StopThinking(llm, patch, steps)
        pieces, whole = streamed(llm, wish, mode="settled", speculation="off")
    same(whole, free)
    assert {*stop.closed} == {True} and whole.metrics.thinking_ended == "confident"
    stopped = [piece.stopped for piece in pieces]
    assert whole.choices[0].sources.index("forced") < max(place or 0 for place in stopped) < 120
    tokens, cuts = list[int](), 0
    for piece in pieces:
        tokens += piece.token_ids
        if not cuts and piece.stopped is None:
            continue
        cuts += 1
        again, output = streamed(llm, wish, mode="settled", answered=ResumeState([tokens], stopped=[piece.stopped]))
        same(output, whole)
        assert again[0].token_ids[: len(tokens)] == tokens and again[-1].stopped == piece.stopped
        if cuts > 2:
            break
    assert cuts


def test_what_ends_before_its_first_step_has_all_that_was_answered(llm: LLM) -> None:
    """Whatever the client has is in the output: the answer so far, or the end that it had."""
    wish = sampling("stop")
    for cut, mode in ((1, None), (4, None), (16, None), (12, "settled")):
        whole = llm.generate(CHAT, wish, mode=mode)
        tokens = [one.token_ids[:cut] for one in whole.choices]
        options: dict[str, Any] = {"mode": mode, "answered": ResumeState(tokens)}
        late = llm.submit(CHAT, wish, timeout=1e-6, **options).result()
        stream = llm.stream(CHAT, wish, **options)
        stream.close()
        for output, reason in ((late, "timeout"), (stream.output, "cancelled")):
            assert output is not None
            for ours, other, some in zip(output.choices, whole.choices, tokens, strict=True):
                assert ours.token_ids == some and len(ours.sources) == len(some)
                over = len(some) == len(other.token_ids)
                assert ours.finish_reason == (other.finish_reason if over else reason)
                assert ours.text == other.text if over else other.text.startswith(ours.text[:-1])


MISFITS: list[tuple[dict[str, Any], Any, str]] = [
    ({}, "tokens", "^answered='tokens' must be a dictionary or an instance of ResumeState"),
    ({}, ResumeState([[5, 320]]), r"^answered.tokens\[0\] holds 320, not an id in 0..319"),
    ({}, ResumeState([[True]]), r"^answered.tokens\[0\]\[0\]=True must be a valid integer"),
    ({}, ResumeState([[5], [6]]), "^answered.tokens has 2 entries, and n=1"),
    ({}, ResumeState([[5]], [None, None]), "^answered.decided has 2 entries for 1 answers"),
    ({}, ResumeState([[5]], stopped=[1, 2]), "^answered.stopped has 2 entries for 1 answers"),
    ({}, ResumeState([[5] * 9]), r"has 9 tokens; this call's answer has room for 8"),
    ({}, ResumeState([[5] * 10_000]), r"has 10000 tokens; the context is"),
    ({"stop_token_ids": [7]}, ResumeState([[5, 7, 6]]), "this answer ends with token 2 of them"),
    ({}, ResumeState(3), r"^answered.tokens=3 must be an instance of Sequence"),  # type: ignore[arg-type]
    ({}, ResumeState(["ab"]), r"^answered.tokens\[0\]='ab' must be valid"),  # type: ignore[list-item]
    ({}, ResumeState([[1.5]]), r"^answered.tokens\[0\]\[0\]=1.5 must be a valid integer"),  # type: ignore[list-item]
    ({}, ResumeState([[5]], 3), r"^answered.decided=3 must be an instance of Sequence"),  # type: ignore[arg-type]
    ({}, ResumeState([[5]], ["x"]), r"^answered.decided\[0\]='x' must be a tuple, list, .* Decided"),  # type: ignore[list-item]
    ({}, ResumeState([[5]], [Decided("", "", True)]), r"^answered.decided\[0\].units=True must be a valid integer"),
    ({}, ResumeState([[5]], [Decided("", "", -1)]), r"^answered.decided\[0\].units=-1 must be greater"),
    ({}, ResumeState([[5]], (), [-1]), r"^answered.stopped\[0\]=-1 must be greater than or equal to 0"),
    ({}, ResumeState([[5]], (), [2]), r"^answered.stopped\[0\]=2 must be a number of its tokens, 0..1"),
    ({"grammar": {"regex": "[0-9]"}}, ResumeState([[5]]), "grammar of this call does not allow"),
]


@pytest.mark.parametrize(("fields", "answered", "why"), MISFITS, ids=str)
def test_what_does_not_fit_is_refused(llm: LLM, fields: dict[str, Any], answered: Any, why: str) -> None:
    wish = SamplingParams(max_tokens=8, **fields)
    with pytest.raises(ValueError, match=why):
        llm.submit("The quick", wish, mode="fast", answered=answered).result()
    assert llm.generate("The quick", wish, mode="fast").token_ids


@pytest.mark.parametrize(("mode", "decided", "why"), [
    ("unsure", (), "mode 'unsure' escalates"),
    ("quick", (), r"^answered.decided\[0\] is missing: mode 'quick' may run fewer groups"),
    ("quick", (Decided("", "", 9),), r"^answered.decided\[0\]: groups=9 is outside"),
    ("auto", (Decided("dep", "", None),), "auto chose 'dep', which is no preset"),
])  # fmt: skip
def test_modes_that_cannot_be_continued(llm: LLM, mode: str, decided: Sequence[Decided], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        llm.submit("The quick", mode=mode, answered=ResumeState([[5]], decided)).result()
