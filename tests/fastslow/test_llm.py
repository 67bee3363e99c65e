"""The public face: many callers, one engine."""

import gc
import math
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from gate import open_llm, settled, slowly

from fastslow import LLM, Mode, Output, Prompt, SamplingParams, Speculation

VOCAB = 320
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
    "{% if enable_thinking is defined and enable_thinking %}<think>{% endif %}"
)
PRESETS = {
    "modes": {
        "fast": {"groups": 2, "sampling": {"max_tokens": 3}},
        "brief": {"thinking": "off", "sampling": {"max_tokens": 2}, "speculation": {"nodes": 2}},
    }
}
TEN = SamplingParams(max_tokens=10, ignore_eos=True)
SELF = {"drafter": "self", "groups": 3}
SAMPLED = SamplingParams(max_tokens=10, ignore_eos=True, temperature=1.0, seed=7)


def test_one_prompt_one_output(llm: LLM) -> None:
    out = llm.generate("The quick brown fox", TEN)
    assert isinstance(out, Output) and out.prompt == "The quick brown fox" and llm.tokenizer is not None
    assert out.prompt_token_ids == llm.tokenizer.encode(out.prompt)
    assert len(out.token_ids) == 10 and out.finish_reason == "length"
    assert out.logprobs is None and out.prompt_logprobs is None and out.stop_reason is None
    ids = llm.generate(out.prompt_token_ids, TEN)
    assert (ids.prompt, ids.token_ids) == (None, out.token_ids)


@pytest.mark.drafts(15, 15)
def test_many_prompts_many_outputs_in_order_each_with_its_own_settings(llm: LLM) -> None:
    prompts: list[Prompt] = ["The quick", [7, 8, 9], "Every expert", [{"role": "user", "content": "hi"}]]
    params = [TEN, SamplingParams(max_tokens=2), None, SAMPLED]
    modes: list[str | Mode] = ["deep", "fast", "fast", Mode(groups=0)]
    wishes: list[str | Speculation] = ["auto", "off", Speculation(nodes=1), "self"]
    outs = llm.generate(prompts, params, mode=modes, speculation=wishes)
    assert [len(o.token_ids) for o in outs][:2] == [10, 2] and len(outs[2].token_ids) <= 3
    assert [o.metrics.mode for o in outs] == ["deep", "fast", "fast", "custom"]
    assert [o.metrics.drafter for o in outs] == ["auto", "off", "auto", "self"]
    assert set(llm.modes) == {"fast", "deep", "auto", "brief"} and llm.modes["fast"].groups == 2
    for out, prompt, param, mode, wish in zip(outs, prompts, params, modes, wishes):
        alone = llm.generate(prompt, param, mode=mode, speculation=wish)
        assert (alone.token_ids, alone.text) == (out.token_ids, out.text)
    assert len(llm.generate(["one"], TEN)) == 1, "a list of one gives a list of one"


def test_chat_goes_through_the_template(llm: LLM) -> None:
    out = llm.chat("hello", TEN, mode="brief")
    assert out.prompt == "<|im_start|>user hello<|im_end|><|im_start|>assistant "
    *_, last = llm.stream_chat("hello", TEN, mode="brief")
    assert last.output is not None and last.output.token_ids == out.token_ids
    both = llm.chat(["hello", [{"role": "user", "content": "hello"}]], TEN, mode=["brief", "deep"])
    assert [one.prompt for one in both] == [out.prompt, f"{out.prompt}<think>"]
    assert both[0].token_ids == out.token_ids


def test_leaving_a_stream_gives_its_pages_back(llm: LLM) -> None:
    params = SamplingParams(max_tokens=400, ignore_eos=True)
    before = llm.stats().ended.get("cancelled", 0)
    stream = llm.stream("The quick", params)
    list(islice(stream, 3))
    assert len(llm._kv.requests) == 1
    del stream
    assert settled(llm) and llm.stats().ended.get("cancelled", 0) == before + 1
    llm.stream("The quick", params)  # dropped unread: nothing runs at all
    assert llm._core.idle


def test_n_answers_differ_and_the_first_is_that_of_n_1(llm: LLM) -> None:
    params = SAMPLED.model_copy(update={"n": 3})
    out = llm.generate("The quick", params)
    answers = [c.token_ids for c in out.choices]
    assert len(answers) == 3 and len({tuple(a) for a in answers}) == 3
    assert answers[0] == llm.generate("The quick", SAMPLED).token_ids
    assert [c.token_ids for c in llm.generate("The quick", params).choices] == answers
    greedy = llm.generate("The quick", SamplingParams(max_tokens=5, n=2))
    assert greedy.choices[0].token_ids == greedy.choices[1].token_ids


@pytest.mark.drafts(100, 5)
@pytest.mark.parametrize("wish", ["off", SELF], ids=str)
def test_a_seed_gives_the_same_alone_and_in_a_batch(llm: LLM, wish: Any) -> None:
    alone = llm.generate("Every expert", SAMPLED, speculation=wish).token_ids
    beside = SamplingParams(max_tokens=25, temperature=2.0)
    outs = llm.generate(["x y z", "Every expert", "The"], [beside, SAMPLED, TEN], speculation=wish)
    assert outs[1].token_ids == alone
    assert llm.generate("Every expert", SAMPLED.model_copy(update={"seed": 8}), speculation=wish).token_ids != alone
    unseeded = SAMPLED.model_copy(update={"seed": None})
    assert len({tuple(llm.generate("Every expert", unseeded).token_ids) for _ in range(3)}) == 3


@pytest.mark.drafts(20, 3)
@pytest.mark.parametrize("wish", ["off", SELF], ids=str)
def test_logprobs(llm: LLM, wish: Any) -> None:
    params = SAMPLED.model_copy(update={"logprobs": 3, "prompt_logprobs": 2})
    out = llm.generate("The quick brown fox", params, speculation=wish)
    assert out.logprobs is not None and out.prompt_logprobs is not None
    for token, table in zip(out.token_ids, out.logprobs, strict=True):
        assert token in table and 3 <= len(table) <= 4
    assert out.prompt_logprobs[0] is None
    for token, known in zip(out.prompt_token_ids[1:], out.prompt_logprobs[1:], strict=True):
        assert known is not None and token in known and 2 <= len(known) <= 3
    # What the answer's tokens get as an answer, they get as a prompt.
    text = [*out.prompt_token_ids, *out.token_ids]
    again = llm.generate(text, SamplingParams(max_tokens=1, prompt_logprobs=VOCAB)).prompt_logprobs
    assert again is not None
    for table, full in zip(out.logprobs, again[len(out.prompt_token_ids) :], strict=True):
        assert full is not None and sum(map(math.exp, full.values())) == pytest.approx(1, abs=1e-4)
        assert table == pytest.approx({t: full[t] for t in table}, abs=1e-4)
    none = SamplingParams(max_tokens=3, logprobs=0, prompt_logprobs=0, temperature=1.0)
    out = llm.generate([9], none, speculation=wish)
    assert out.prompt_logprobs == [None] and out.logprobs is not None
    assert [list(table) for table in out.logprobs] == [[t] for t in out.token_ids]


@pytest.mark.drafts(300, 25)
def test_threads_get_what_they_would_get_alone(llm: LLM) -> None:
    prompts = [f"{word} expert {i}" for i, word in enumerate(("The", "Every", "How", "你好"))] * 2
    wishes = ["off", "ngram", "self", "ngram+self"]
    modes = ["fast", "deep", Mode(groups=0)]

    def job(i: int) -> tuple[list[int], str]:
        params = SAMPLED.model_copy(update={"seed": i}) if i % 2 else TEN
        options: dict[str, Any] = {"mode": modes[i % 3], "speculation": wishes[i % 4]}
        if i % 4 == 1:
            *_, last = llm.stream(prompts[i], params, **options)
            assert last.output is not None
            return last.output.token_ids, last.output.text
        if i % 4 == 2:
            list(islice(llm.stream(prompts[i], params, **options), 1))  # and leave
        out = llm.generate([prompts[i], "beside it"], params, **options)[0]
        return out.token_ids, out.text

    alone = [job(i) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(job, [*range(8), *range(8)])) == alone * 2
    assert settled(llm)


def test_close_cancels_what_runs_and_frees_the_model(folder: Path) -> None:
    llm = open_llm(folder)
    outs: list[Output] = []
    params = SamplingParams(max_tokens=490, ignore_eos=True)
    llm.model.forward = slowly(llm.model.forward)  # type: ignore[method-assign] # 5 s an answer

    def ask() -> None:
        outs.append(llm.generate("The", params, speculation="off"))

    waiting = [threading.Thread(target=ask) for _ in range(3)]
    stream = llm.stream("The", params, speculation="off")
    next(stream)
    for thread in waiting:
        thread.start()
    while len(llm._kv.requests) < 4:
        time.sleep(0.001)
    model = weakref.ref(llm.model)
    submitted = [llm.submit("The quick", params) for _ in range(20)]
    llm.close()
    llm.close()
    for thread in waiting:
        thread.join(60)
    for handle in submitted:
        try:
            assert handle.result(60).finish_reason in ("cancelled", "length")
        except RuntimeError as error:  # the engine did not have it yet
            assert "closed" in str(error)
    assert [o.finish_reason for o in outs] == ["cancelled"] * 3
    *_, last = stream
    assert last.output is not None and last.output.finish_reason == "cancelled"
    until = time.monotonic() + 10  # the thread that tokenised last holds it a moment longer
    while model() is not None and time.monotonic() < until:
        gc.collect()
    assert model() is None, "the model is still held"
    for call in (llm.generate, llm.chat, llm.stream, llm.submit):
        with pytest.raises(RuntimeError, match="^this LLM is closed; make a new one$"):
            call("The", params)


def test_metrics_are_sane(llm: LLM) -> None:
    started = time.monotonic()
    out = llm.generate("The quick brown fox", SamplingParams(max_tokens=40, ignore_eos=True))
    spent = time.monotonic() - started
    m = out.metrics
    assert m.tokens == len(out.token_ids) == 40 and 0 < m.ttft <= spent and 0 <= m.tpot <= spent
    assert m.ttft + m.tpot * 39 <= spent * 1.01 and m.tokens == m.steps + m.accepted and m.accepted <= m.drafted
    assert len(m.runs) == m.steps and sum(m.runs) == m.accepted
    assert 0 <= m.draft_seconds + m.verify_seconds <= spent
    assert len(m.acceptance) <= 24 and all(0 <= share <= 1 for share in m.acceptance)
    off = llm.generate("The quick", TEN, speculation="off").metrics
    assert (off.drafter, off.drafted, off.steps, off.acceptance) == ("off", 0, 10, [])
    assert (off.preemptions, off.mean_accepted, off.tokens_per_step) == (0, 0.0, 1.0)


def test_prefix_hits_are_counted_and_only_within_a_mode(folder: Path) -> None:
    prompt = list(range(10, 60))
    with open_llm(folder) as llm:
        assert llm.generate(prompt, TEN).metrics.cached_tokens == 0
        assert llm.generate(prompt, TEN).metrics.cached_tokens == 48
        assert llm.generate(prompt, TEN, mode=Mode(groups=0)).metrics.cached_tokens == 0
        assert llm.generate(prompt[:20], TEN).metrics.cached_tokens == 16
    with open_llm(folder, prefix_caching=False) as llm:
        for _ in range(2):
            assert llm.generate(prompt, TEN).metrics.cached_tokens == 0


def test_forgotten_prompts_are_read_again_and_what_runs_continues(folder: Path) -> None:
    prompt = list(range(10, 60))
    with open_llm(folder) as llm:
        whole = llm.generate(prompt, TEN, speculation="off")
        pieces = llm.stream(prompt, TEN, speculation="off")
        next(pieces)
        llm.forget_prompts()
        assert llm.generate(prompt, TEN).metrics.cached_tokens == 0
        (last,) = [piece.output for piece in pieces if piece.output is not None]
        assert last.token_ids == whole.token_ids and last.metrics.cached_tokens == 48
        assert llm.generate(prompt, TEN).metrics.cached_tokens == 48
    with pytest.raises(RuntimeError, match="closed"):
        llm.forget_prompts()


@pytest.mark.drafts(20, 5)
def test_an_answer_ends_where_it_should(folder: Path, llm: LLM) -> None:
    with open_llm(folder, max_model_len=12) as short:
        out = short.generate([7] * 9, SamplingParams(max_tokens=100, ignore_eos=True))
    assert (len(out.token_ids), out.finish_reason) == (3, "length")
    params = SamplingParams(max_tokens=9, min_tokens=2, logit_bias={2: 100.0})
    out = llm.generate("The quick", params)
    assert len(out.token_ids) == 3 and out.token_ids[-1] == 2
    assert (out.finish_reason, out.stop_reason) == ("stop", 2) and "im_end" not in out.text
    assert len(llm.generate("The quick", params.model_copy(update={"ignore_eos": True})).token_ids) == 9
    text = llm.generate("The quick", TEN).text
    stop = text[2:4]
    for wish in ("off", "ngram", "self"):
        out = llm.generate("The quick", TEN.model_copy(update={"stop": (stop,)}), speculation=wish)
        assert (out.text, out.stop_reason) == (text[: text.index(stop)], stop)


def test_pages_are_checked_in_a_pause_and_not_between_two_calls(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    checks: list[float] = []
    one = SamplingParams(max_tokens=1)
    monkeypatch.setattr("fastslow.engine.core.worker.PAUSE", 60.0)
    llm.generate([5, 6, 7], one)  # from here on pauses are as long
    monkeypatch.setattr(llm._kv, "check_integrity", lambda: checks.append(time.monotonic()))
    for _ in range(3):
        llm.generate([5, 6, 7], one)
    assert not checks
    monkeypatch.setattr("fastslow.engine.core.worker.PAUSE", 0.01)
    llm.generate([5, 6, 7], one)
    deadline = time.monotonic() + 20
    while not checks and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    assert len(checks) == 1
