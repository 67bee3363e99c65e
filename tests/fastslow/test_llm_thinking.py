"""Thinking as callers see it: presets, switches, tags, budgets, reasoning and text; and a thought that its caller closes."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_chat, write_moge
from gate import SOON, Gate, StopThinking, open_llm, settled
from refusals import refused
from tokenizers_tiny import write_spm

from fastslow import LLM, AsyncLLM, Escalation, Loop, Mode, Output, SamplingParams, Speculation, SpeculationLike

OPEN, CLOSE, LETTER = 3, 4, 60  # <think>, </think>
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PLAIN = CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
EMPTY = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
OPENS = "{{ '<think>\\n' }}"  # always: it has no switch
TEMPLATES = {
    "qwen": PLAIN + EMPTY,  # writes an empty thought when it is not to think
    "opening": PLAIN + OPENS,
    "switched": PLAIN + "{% if thinking %}<think>{% else %}</think>{% endif %}",
    "plain": PLAIN,  # the model opens its thoughts, or does not
}
TWENTY = SamplingParams(max_tokens=20, ignore_eos=True)
PHRASE = "\nSo:\n"
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}<think>"
OPTIONS = {"thinking_tags": ("<think>", "</think>")}
LONG = SamplingParams(max_tokens=80, ignore_eos=True)
SEEDED = SamplingParams(max_tokens=80, ignore_eos=True, temperature=0.9, seed=5)
CHAT = [{"role": "user", "content": "The quick"}]
WISHES: list[Any] = ["off", Speculation(drafter="self", nodes=5), "suffix|self"]


@pytest.fixture(scope="module")
def llms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LLM]]:
    root = tmp_path_factory.mktemp("llms")
    made = {name: open_llm(write_chat(root / name, template)) for name, template in TEMPLATES.items()}
    yield made
    for llm in made.values():
        llm.close()


def biased(bias: dict[int, float]) -> SamplingParams:
    """A model that says these tokens first, likeliest first, and then never again."""
    return TWENTY.model_copy(update={"logit_bias": bias, "repetition_penalty": 100.0})


def streamed(llm: LLM, *arguments: Any, **options: Any) -> tuple[Output, str, str]:
    *pieces, last = llm.stream_chat("hello", *arguments, **options)
    assert last.output is not None
    return last.output, "".join(p.reasoning for p in pieces), "".join(p.text for p in pieces)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("params", [TWENTY, biased({OPEN: 60.0}), biased({CLOSE: 60.0})], ids=["", "opens", "closes"])
def test_with_thinking_off_the_answer_is_the_text(llms: dict[str, LLM], name: str, params: SamplingParams) -> None:
    """Whatever the template does and the model says: it may even ignore the switch."""
    out, reasoning, text = streamed(llms[name], params, mode="fast")
    assert (out.reasoning, reasoning) == ("", "") and out.text == text
    assert (text != "") == bool({*out.token_ids} - {OPEN, CLOSE}) and out.metrics.thinking_tokens == 0
    assert out.prompt is not None
    assert not out.prompt.rstrip().endswith("<think>"), "a prompt that opens a thought closes it"
    opened = [i for i, token in enumerate(out.token_ids) if token == OPEN]
    assert all(out.token_ids[i + 1] == CLOSE for i in opened if i + 1 < len(out.token_ids))


def test_a_thought_that_the_answer_opens(llms: dict[str, LLM]) -> None:
    mode = {"base": "deep", "thinking_budget": 5}
    out, reasoning, text = streamed(llms["qwen"], biased({OPEN: 60.0}), mode=mode)
    assert out.token_ids[0] == OPEN and out.token_ids[6] == CLOSE
    assert (out.metrics.thinking_tokens, out.metrics.thinking_ended) == (5, "budget")
    assert (out.reasoning, out.text) == (reasoning, text) and reasoning and text
    own = llms["qwen"].chat("hello", biased({OPEN: 90.0, CLOSE: 60.0}), mode=mode).metrics
    assert (own.thinking_tokens, own.thinking_ended) == (0, "model")
    assert llms["qwen"].chat("hello", TWENTY).metrics.thinking_ended is None


def test_a_thought_that_is_closed_but_was_never_opened(llms: dict[str, LLM]) -> None:
    params = biased({LETTER: 60.0, CLOSE: 57.0})
    out, reasoning, text = streamed(llms["plain"], params, mode="deep")
    place = out.token_ids.index(CLOSE)
    assert place > 0 and out.metrics.thinking_tokens == place and out.metrics.thinking_ended == "model"
    assert out.reasoning and out.text, "the output knows that the beginning was a thought"
    assert (reasoning, text.startswith(out.reasoning)) == ("", True), "the stream could not know"
    off = llms["plain"].chat("hello", params, mode={"thinking": "off"})
    assert off.reasoning == "" and off.text.startswith(out.reasoning)
    assert off.token_ids == out.token_ids, "a budget knows only of thoughts that were opened"


def test_tags_that_a_checkpoint_declares_or_a_caller_gives(tmp_path: Path) -> None:
    folder = write_chat(tmp_path, PLAIN, {"thinking_tags": ["<reason>", "</reason>"]})
    deep: dict[str, Any] = {"base": "deep", "thinking_budget": 4}
    with open_llm(folder) as llm:
        out = llm.generate("Think. <reason>", TWENTY, mode=deep)
        assert llm.tokenizer is not None
        closed = llm.tokenizer.encode("</reason>", add_special=False)
        assert out.token_ids[4 : 4 + len(closed)] == closed
        assert out.reasoning and out.text and "reason>" not in out.reasoning + out.text
        assert (out.metrics.thinking_tokens, out.metrics.thinking_ended) == (4, "budget")
        assert llm.generate(llm.tokenizer.encode("Think. <reason>"), TWENTY, mode=deep).token_ids == out.token_ids
    with open_llm(folder, thinking_tags=("", "</think>")) as llm:  # no tag opens its thoughts
        out, reasoning, text = streamed(llm, TWENTY, mode=deep)
        assert out.token_ids[4] == CLOSE and out.metrics.thinking_tokens == 4
        assert (out.reasoning, out.text) == (reasoning, text) and reasoning and text
        off = llm.chat("hello", TWENTY, mode="fast")
        assert (off.reasoning, off.text != "") == ("", True)
    for bad in (["<a>"], ["<a>", ""], "<a></a>", [1, 2]):
        refused("^(field ')?thinking_tags", open_llm, folder, thinking_tags=bad)
    (folder / "fastslow.json").write_text('{"thinking_tags": 5}')
    refused(r"fastslow\.json: thinking_tags=5 must be two texts", open_llm, folder)


def test_pangus_tags_and_switch(tmp_path: Path) -> None:
    write_moge(tmp_path, vocab=write_spm(tmp_path, 600), num_hidden_layers=2, hidden_size=32)
    with open_llm(tmp_path) as llm:
        assert llm.tokenizer is not None
        opens, closes = (llm.tokenizer.token_id(f"[unused{n}]") for n in (16, 17))
        assert opens is not None and closes is not None
        bias = biased({opens: 60.0})
        out = llm.chat("hi", bias, mode=Mode(base="deep", thinking_budget=3, closing="\nThe answer:"))
        assert out.prompt is not None and "/no_think" not in out.prompt and out.token_ids[0] == opens
        assert llm.tokenizer.decode(out.token_ids[4 : out.token_ids.index(closes)]).lstrip(" ") == "\nThe answer:"
        assert out.reasoning.endswith("\nThe answer:") and out.metrics.thinking_tokens == 3
        off = llm.chat("hi", bias, mode="fast")
        assert off.prompt is not None and "hi /no_think[unused10]" in off.prompt
        assert off.token_ids[:2] == [opens, closes] and off.reasoning == ""


@pytest.mark.drafts(500, 50, nodes=2)
def test_a_batch_of_sixteen_modes_equals_its_solo_runs(llms: dict[str, LLM]) -> None:
    llm = llms["opening"]
    modes: list[Any] = [
        "fast", "deep", {"base": "deep", "thinking_budget": 0},
        {"base": "deep", "thinking_budget": 5, "closing": PHRASE},
        {"base": "deep", "thinking_budget": 9, "thinking_soft": 6}, {"base": "deep", "loop": True, "closing": PHRASE},
        {"base": "fast", "thinking": "auto", "thinking_budget": 7}, Mode(base="deep", groups=2, thinking_budget=3),
    ] * 2  # fmt: skip
    chats = [[{"role": "user", "content": f"question {n}"}] for n in range(16)]
    params = [SamplingParams(max_tokens=24, ignore_eos=True)] * 8
    params += [p.model_copy(update={"temperature": 0.9, "seed": 5}) for p in params]
    own = Speculation(drafter="self", nodes=3)  # else it drafts what pays, which may be nothing
    wishes: list[SpeculationLike] = [own, "ngram", "off", own, "auto", "ngram", own, "suffix"]
    wishes *= 2
    batched = llm.generate(chats, params, mode=modes, speculation=wishes, progress=False)
    assert sum(out.metrics.accepted for out in batched) > 0
    for chat, param, mode, wish, out in zip(chats, params, modes, wishes, batched):
        alone = llm.generate(chat, param, mode=mode, speculation=wish)
        plain = llm.generate(chat, param, mode=mode, speculation="off")
        assert out.token_ids == alone.token_ids == plain.token_ids, (mode, wish)
        assert (out.text, out.reasoning) == (plain.text, plain.reasoning)
        assert out.metrics.thinking_ended == plain.metrics.thinking_ended


def test_texts_and_ids_are_taken_as_they_stand(llms: dict[str, LLM]) -> None:
    """The switch is a chat's; a budget that is given holds for them, too."""
    llm = llms["plain"]
    out = llm.generate("Once <think>", TWENTY, mode="fast")
    assert (out.text, out.metrics.thinking_tokens) == ("", 20)
    out = llm.generate("Once <think>", TWENTY, mode={"base": "fast", "thinking_budget": 3})
    assert out.token_ids[3] == CLOSE and out.text


def test_what_a_budget_cannot_do_is_said_once(tmp_path: Path, llms: dict[str, LLM], logged: list[str]) -> None:
    for _ in range(2):
        llms["opening"].chat("hello", TWENTY, mode={"thinking": "on", "thinking_budget": 20})
        llms["opening"].chat("hello", TWENTY, mode={"thinking": "on", "confidence": True})
    assert sum("leaves no room" in line for line in logged) == 1
    assert sum("there is no room for that" in line for line in logged) == 1
    folder = write_chat(tmp_path, PLAIN)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text("utf-8").replace("think>", "thonk>"), "utf-8")
    with open_llm(folder) as llm:
        out = llm.chat("hello", TWENTY, mode={"base": "deep", "confidence": True})
        assert (out.metrics.thinking_tokens, out.metrics.thinking_ended) == (0, None)
    assert any("no thinking tags" in line for line in logged)


@pytest.mark.drafts(30, 5)
@pytest.mark.parametrize("wish", WISHES, ids=str)
@pytest.mark.parametrize("params", [LONG, SEEDED], ids=["greedy", "seeded"])
def test_a_closed_thought_is_a_budget_that_is_used_up(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, wish: Any, params: SamplingParams
) -> None:
    with monkeypatch.context() as patch:
        stop = StopThinking(llm, patch, 4)
        out = llm.generate(CHAT, params, mode=Mode(closing=PHRASE), speculation=wish)
    metrics = out.metrics
    assert stop.closed == [True] and metrics.thinking_ended == "caller" and 4 <= metrics.thinking_tokens < 40
    budget = Mode(closing=PHRASE, thinking_budget=metrics.thinking_tokens)
    plain = llm.generate(CHAT, params, mode=budget, speculation="off")
    assert out.token_ids == plain.token_ids and len(out.token_ids) == 80
    assert out.reasoning == plain.reasoning and out.reasoning.endswith(PHRASE) and out.text


def test_a_thought_that_is_closed_beside_a_budget(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    mode = Mode(thinking_budget=50, thinking_soft=10, loop=Loop())
    StopThinking(llm, monkeypatch, 3)
    out = llm.generate(CHAT, LONG, mode=mode, speculation="off")
    assert (out.metrics.thinking_ended, out.metrics.thinking_tokens) == ("caller", 3)


def test_closing_twice_and_while_the_phrase_is_forced(llm: LLM, gate: Gate) -> None:
    handle = llm.submit(CHAT, LONG, mode=Mode(closing=PHRASE), speculation="off")
    with ThreadPoolExecutor(2) as pool:
        assert gate.reached.acquire(timeout=SOON)
        gate.steps(2)
        both = [pool.submit(handle.stop_thinking) for _ in range(2)]
        while not all(closed.done() for closed in both):
            gate.steps()
        assert all(closed.result() for closed in both)
    gate.open()
    out = handle.result(SOON)
    assert out.metrics.thinking_ended == "caller" and out.reasoning.count(PHRASE) == 1 and settled(llm)


def test_a_thought_that_ended_or_never_began_is_not_closed(llm: LLM) -> None:
    done = llm.submit(CHAT, LONG)
    done.result(SOON)
    assert not done.stop_thinking()
    fast = llm.stream(CHAT, LONG, mode={"thinking_budget": 2}, speculation="off")
    for _, piece in zip(range(8), fast):
        assert piece.token_ids
    assert not fast.stop_thinking()
    fast.close()
    unstarted = llm.stream(CHAT, LONG)
    assert not unstarted.stop_thinking()
    unstarted.close()


@pytest.mark.parametrize("how", ["keep", "recompute"])
def test_a_closed_thought_continues_in_another_mode(llm: LLM, monkeypatch: pytest.MonkeyPatch, how: Any) -> None:
    doubt = Mode(groups=0, escalate=Escalation(below=1.0, window=6, how=how))
    StopThinking(llm, monkeypatch, 4)
    out = llm.generate(CHAT, LONG, mode=doubt, speculation="off")
    assert out.metrics.escalated_at is not None
    assert (out.metrics.thinking_ended, out.metrics.thinking_tokens) == ("caller", 4)


def test_several_answers_are_closed_in_an_event_loop(llm: LLM) -> None:
    async def main() -> None:
        served = AsyncLLM.around(llm)
        handle = served.submit(CHAT, LONG.model_copy(update={"n": 2, "max_tokens": 300}))
        async for piece in handle:
            assert piece.output is None and not piece.text, "it thinks"
            assert await served.stop_thinking(handle)
            break
        out = await handle  # leaving the loop cancelled it
        assert {c.metrics.thinking_ended for c in out.choices} <= {"caller", None}
        assert not await served.stop_thinking(handle)
        stream = served.stream(CHAT, LONG, speculation="off")
        closed = False
        async for _ in stream:
            closed = closed or await served.stop_thinking(stream)
        streamed = stream.output
        assert closed and streamed is not None and streamed.metrics.thinking_ended == "caller" and streamed.text

    asyncio.run(main())
    assert settled(llm)
