"""Random requests that mix all that a request can ask for: drafts change none of them, and what steers their
thoughts holds to the token.

`FASTSLOW_REQUESTS=3000` asks for more of them; usual are 200.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
from checkpoints import write_moge
from gate import open_llm, settled
from tokenizers_tiny import write_bpe
from tool_templates import CLOCK, HERMES, WEATHER

from fastslow import LLM, Completion, GenerationError, ResumeState
from fastslow.engine.text.tool_formats import ToolCalls
from fastslow.tool_calls.offered import ToolChoice, openai_tools
from fastslow.tool_calls.prepare import ToolSupport

REQUESTS = int(os.environ.get("FASTSLOW_REQUESTS", "200"))
TOGETHER = 10  # requests in a batch
END, OPEN, CLOSE, DOT = 2, 3, 4, 18  # <|im_end|>, <think>, </think>, a full stop
THOUGHT = "{%- if enable_thinking is defined and enable_thinking %}{{- '<think>\\n' }}{% endif %}"
DOUBT = {"below": 0.5, "window": 2, "to": "short"}
ESCALATED = ("recompute", "restart")
PRESETS = {
    "modes": {
        "short": {"thinking": "on", "thinking_budget": 5, "closing": "\nNow.\n"},
        "soft": {"thinking": "on", "thinking_budget": 12, "thinking_soft": 4},
        **{how: {"thinking": "off", "escalate": {**DOUBT, "how": how}} for how in ESCALATED},
        "early": {"thinking": "on", "thinking_budget": 9, "loop": True},
        "few": {"thinking": "off", "groups": 2},
    }
}
CONTINUED = ("fast", "deep", "short", "soft", "early", "few")
MODES = (*CONTINUED, *CONTINUED, *ESCALATED)
POINT = {"type": "object", "properties": {"x": {"type": "integer"}, "on": {"type": "boolean"}},
    "required": ["x"], "additionalProperties": False}  # fmt: skip
GRAMMARS: tuple[dict[str, Any], ...] = (
    {"json_schema": POINT}, {"json_object": True}, {"regex": "(ab|cd|e){3,20}(<think>|</think>)?[0-9]{2}é"},
    {"regex": ".{0,12}"}, {"choice": ["yes", "no", "not now", "nothing at all"]},
    {"lark": 'start: s\ns: s s | s s s | "a" | "The " |'}, {"gbnf": 'root ::= "<" [a-c]+ ">" root | "!"'},
)  # fmt: skip
# Fields of a mode that steer thoughts, with values; each is given to some requests.
STEERING: dict[str, tuple[Any, ...]] = {
    "thinking_budget": (0, 3, 9, 30), "closing": ("\nNow.\n", "So</think>It is"),
    "loop": (True, {"times": 2, "least": 16, "stale": 20, "answer": True}, {"stale": 16}),
    "answer_room": (1, 5, 12, "auto"),
    "confidence": (
        {"every": 2, "tokens": 1, "sure": 0}, {"every": 7, "tokens": 3, "sure": 0},
        {"every": 5, "prefix": "It", "tokens": 2, "times": 1, "sure": 0.005},
    ),
    "warn_at": (0.1, 0.5), "turn_budget": (2, 12, 40),
    "thought": ({"temperature": 1.1}, {"frequency_penalty": 1.0, "temperature": 0}, {"top_k": 2}),
    "answer": ({"temperature": 0}, {"temperature": 0.9, "min_p": 0.1}, {"presence_penalty": 1.0}),
}  # fmt: skip
TURN: list[dict[str, Any]] = [
    {"role": "assistant", "content": "", "reasoning_content": "I look. ", "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "clock", "arguments": {}}}]},
    {"role": "tool", "content": "noon", "tool_call_id": "a"},
]  # fmt: skip
DRAFTERS = ("ngram", "self", "suffix", "suffix|self", "ngram+self", "auto")
PROMPTS = ("The quick brown fox", "hello", "abcabcabcabc", "Every expert answers. " * 4, "你好")
OUTPUTS = ("text", "reasoning", "token_ids", "finish_reason", "stop_reason")


class Wish(NamedTuple):
    """A request, as `LLM.submit` takes it."""

    prompt: list[dict[str, Any]]
    options: dict[str, Any]


class Wishes:
    """Random ones."""

    def __init__(self, calls: ToolCalls, seed: int) -> None:
        self._random, self._calls = Random(seed), calls

    def make(self) -> Wish:
        draw = self._random
        sampling: dict[str, Any] = {"temperature": 0, "max_tokens": draw.choice((1, 4, 20, 60))}
        options: dict[str, Any] = {"mode": draw.choice(MODES), "sampling": sampling}
        grammar = draw.choice(GRAMMARS) if draw.random() < 0.4 else None
        if draw.random() < 0.3:
            choice = ToolChoice(draw.choice(("auto", "required")))
            grammar = grammar if "json_schema" in (grammar or {}) else None
            support = ToolSupport(openai_tools([WEATHER, CLOCK]), choice, draw.random() < 0.5, self._calls, grammar)
            sampling |= support.sampling
            options["chat_template_kwargs"] = support.variables
        elif grammar is not None:
            sampling["grammar"] = grammar
        for name, values in (
            ("n", (2, 3)), ("stop", (["e"], ["us", "th "], ['"'], ["\n", "</think>"])),
            ("stop_token_ids", ([7, 90], [60])), ("min_tokens", (1, 3)), ("ignore_eos", (True,)), ("logprobs", (1,)),
        ):  # fmt: skip
            if draw.random() < 0.25:
                sampling[name] = draw.choice(values)
        sampling["min_tokens"] = min(sampling.get("min_tokens", 0), sampling["max_tokens"])
        for name, value in (("frequency_penalty", 1.0), ("repetition_penalty", 1.3)):
            if draw.random() < 0.5:
                sampling[name] = value
        marks = (END, OPEN, CLOSE, draw.randrange(5, 320))
        sampling["logit_bias"] = {mark: draw.uniform(0, 4) for mark in marks if draw.random() < 0.5}
        return Wish([{"role": "user", "content": draw.choice(PROMPTS)}], options)

    def steered(self) -> Wish:
        """A wish whose thought is steered; some are drawn with a seed."""
        draw, (prompt, options) = self._random, self.make()
        given = {k: draw.choice(values) for k, values in STEERING.items() if draw.random() < 0.4}
        options["mode"] = {"base": "deep", "warning": draw.choice((" Hm.", "\nSoon."))} | given
        options["sampling"]["max_tokens"] = draw.choice((2, 9, 30, 60, 120))
        options["sampling"]["min_tokens"] = min(options["sampling"]["min_tokens"], 2)
        if draw.random() < 0.4:
            options["sampling"] |= {"temperature": 0.9}
        if draw.random() < 0.3:  # it says one thing again and again
            options["sampling"] |= {"logit_bias": {DOT: 100.0}, "max_tokens": 120}
        options["sampling"]["seed"] = draw.randrange(100)
        turn = TURN if draw.random() < 0.4 else []
        return Wish([*prompt, *turn], options)

    def cut(self, whole: list[Completion]) -> ResumeState:
        """The part of these that an engine may have answered when it ended."""
        draw = self._random
        return ResumeState([c.token_ids[: draw.randint(0, len(c.token_ids))] for c in whole])

    def drafter(self) -> dict[str, Any]:
        choose = self._random.choice
        return {"drafter": choose(DRAFTERS), "nodes": choose((None, 3, 9))}

    def resumed(self) -> bool:
        return self._random.random() < 0.3


def said(one: Completion) -> tuple[Any, ...]:
    return *tuple(getattr(one, name) for name in OUTPUTS), one.metrics.thinking_tokens, one.metrics.thinking_ended


@pytest.fixture(scope="module")
def llms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LLM, LLM]]:
    """An engine that decodes plainly, and one whose memory is scarce."""
    folder: Path = tmp_path_factory.mktemp("mixed")
    write_bpe(folder, HERMES + THOUGHT, 320)
    (folder / "fastslow.json").write_text(json.dumps(PRESETS), "utf-8")
    write_moge(folder, vocab=320, num_hidden_layers=2, hidden_size=32, max_position_embeddings=1024)
    with open_llm(folder) as plain, open_llm(folder, kv_memory="2MiB", max_running=12) as drafts:
        yield plain, drafts


def ask(llm: LLM, wishes: list[Wish], more: list[dict[str, Any]]) -> list[Any]:
    """The choices of each, or how it failed."""
    handles = [llm.submit(w.prompt, **{**w.options, **m}) for w, m in zip(wishes, more)]
    answers: list[Any] = []
    for handle in handles:
        try:
            answers.append(handle.result().choices)
        except (ValueError, GenerationError) as error:
            answers.append(str(error))
    return answers


def broken(one: Completion, wish: Wish) -> str:
    """Name the promise about thoughts that an answer breaks; "" = none."""
    mode, sampling, made = wish.options["mode"], wish.options["sampling"], one.metrics
    if isinstance(mode, str):
        return ""
    if made.thinking_tokens > mode.get("thinking_budget", 999):
        return "budget"
    if (left := made.turn_budget_left) is not None:
        spent = len("I look. ") if len(wish.prompt) > 1 else 0  # at most
        if not mode["turn_budget"] - spent - made.thinking_tokens <= left < mode["turn_budget"] + 1:
            return "turn budget"
        if made.thinking_tokens > mode["turn_budget"]:
            return "turn budget passed"
    stops = {*sampling.get("stop", ()), *sampling.get("stop_token_ids", ())}
    if one.stop_reason not in stops:  # the caller's own may come in a thought
        closed = one.token_ids.index(CLOSE) + 1 if CLOSE in one.token_ids else 0
        if made.thinking_tokens and not closed:
            return "the thought is open"
        if closed and not one.text and not {*one.token_ids[closed:]} - {OPEN, CLOSE}:
            return "empty"
    return ""


@pytest.mark.parametrize("count", [20, pytest.param(2000, marks=pytest.mark.slow)])
def test_steering_holds_to_the_token(llms: tuple[LLM, LLM], count: int) -> None:
    found = compared(llms, count, Wishes.steered)
    reasons = ("model", "budget", "turn", "room", "loop", "confident")
    assert all(found[what] for what in ("resumed", "drafted", "put in", *reasons[: max(1, count // 60)]))


@pytest.mark.parametrize("count", [20, pytest.param(REQUESTS, marks=pytest.mark.slow)])
def test_drafts_change_none_of_them(llms: tuple[LLM, LLM], count: int) -> None:
    found = compared(llms, count, Wishes.make)
    shown = ("resumed", "drafted", "escalated", "thought", "calls")
    assert found["drafted"] and all(found[what] >= count // 50 for what in shown)


def compared(llms: tuple[LLM, LLM], count: int, make: Callable[[Wishes], Wish]) -> Counter[str]:
    """Count the outcomes of `count` random requests, each of which was answered with drafts as without."""
    plain, drafts = llms
    found: Counter[str] = Counter()
    wrong: list[Any] = []
    for seed in range(count // TOGETHER):
        draw = Wishes(drafts.tool_calls, seed)
        wishes = [make(draw) for _ in range(TOGETHER)]
        alone = [one for w in wishes for one in ask(plain, [w], [{"speculation": "off"}])]
        more: list[dict[str, Any]] = []
        for wish, whole in zip(wishes, alone):
            more.append({"speculation": draw.drafter()})
            resumable = not isinstance(whole, str) and wish.options["mode"] not in ESCALATED
            if resumable and draw.resumed():
                more[-1]["answered"] = draw.cut(whole)
        for wish, whole, beside, asked in zip(wishes, alone, ask(drafts, wishes, more), more):
            pair = [one if isinstance(one, str) else [*map(said, one)] for one in (whole, beside)]
            if pair[0] != pair[1]:
                wrong.append((seed, wish, asked, *pair))
            if not isinstance(whole, str):
                wrong += [(seed, wish, bad, one) for one in whole if (bad := broken(one, wish))]
                found.update(one.metrics.thinking_ended or "no thought" for one in whole)
                found["put in"] += sum(one.metrics.put_in_tokens > 1 for one in whole)
            found["failed" if isinstance(whole, str) else "answers"] += 1
            found["resumed"] += "answered" in asked
            if not isinstance(beside, str):
                found["drafted"] += sum(one.metrics.accepted > 0 for one in beside)
                found["escalated"] += sum(one.metrics.escalated_at is not None for one in beside)
                found["thought"] += sum(one.metrics.thinking_tokens > 0 for one in beside)
                found["calls"] += sum("<tool_call>" in one.text for one in beside)
    print(dict(found))
    assert not wrong, wrong[:3]
    assert found["failed"] <= count // 10 and settled(drafts)
    return found
