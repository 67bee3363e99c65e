"""An auto that looks at the hidden state at the prompt's end gives the answer of the mode that it takes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from head_tools import tiny_weights, write_head
from refusals import refused

from fastslow import LLM, PromptFacts, ResumeState, SamplingParams, Speculation
from fastslow.policies.auto import read_selector
from fastslow.policies.learned_auto import LearnedModeRouter
from fastslow.tools.prompts import Conversation, Task
from fastslow.tools.tune.learned import hidden_states

HIDDEN = 32
BETWEEN = "fast", "brief", "deep"
WORDS = ["one", "two", "three", "tell", "me", "a", "b", "c", "why", "how"]
CHATS: list[Conversation] = [
    [{"role": "user", "content": " ".join(WORDS[n % 7 : n % 7 + 1 + n % 4])}] for n in range(24)
]


def router(**fields: Any) -> LearnedModeRouter:
    """Chances at random, so that each mode is taken by some prompt."""
    weights = np.random.default_rng(0).normal(size=(3, HIDDEN)) * 0.4
    given = {"between": BETWEEN, "layer": 1, "weights": weights.tolist(), "bias": (0.0, 0.0, 0.0)}
    return LearnedModeRouter(**given | {"token_weights": weights.tolist(), "tokens": (2, 5, 9)} | fields)


def always(place: int) -> LearnedModeRouter:
    bias = [9.0 if n == place else -9.0 for n in range(3)]
    return router(weights=[[0.0] * HIDDEN] * 3, token_weights=[[0.0] * HIDDEN] * 3, bias=bias)


def sampling(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 10, "ignore_eos": True, **fields})


@pytest.fixture(scope="module")
def head(thinker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_head(tmp_path_factory.mktemp("head") / "head.safetensors", *tiny_weights(thinker, (0,)))


@pytest.fixture(scope="module")
def llm(thinker: Path) -> Iterator[LLM]:
    brief = {"base": "deep", "thinking_budget": 3}
    unsure = {"base": "fast", "escalate": {"below": 0.5}}
    with LLM(
        thinker, kv_memory="4MiB", progress=False, modes={"brief": brief, "unsure": unsure}, speculation="off"
    ) as llm:
        yield llm


@pytest.fixture(scope="module")
def apart(llm: LLM) -> LearnedModeRouter:
    """A router that tells these prompts apart: its chances depend on how they differ."""
    seen_NH = hidden_states(llm, [Task(chat, "0", "number") for chat in CHATS], "fast", 1, lambda *_: None)
    _, _, directions = np.linalg.svd(seen_NH - seen_NH.mean(0))
    weights = 20 * directions[:3] / seen_NH.std()
    bias = -weights @ seen_NH.mean(0)
    return router(weights=weights.tolist(), bias=bias.tolist())


@pytest.mark.drafts(8, 8, nodes=None)
@pytest.mark.parametrize("drafter", ["off", "ngram", "self", "head"])
@pytest.mark.parametrize("drawn", [{}, {"temperature": 0.8, "seed": 5}], ids=["greedy", "drawn"])
def test_it_is_the_answer_of_the_mode_that_it_takes(
    llm: LLM, head: Path, apart: LearnedModeRouter, drafter: str, drawn: dict[str, Any]
) -> None:
    """In a batch, under every drafter: also one that reads another layer."""
    own: dict[str, Any] = {"head": str(head)} if drafter == "head" else {}
    draft = "off" if drafter == "off" else Speculation(drafter=drafter, nodes=3, accept="reproducible", **own)
    wish = sampling(**drawn)
    outs = llm.generate(CHATS, wish, mode=apart, speculation=draft, progress=False)
    assert {out.metrics.mode for out in outs} == set(BETWEEN)
    for chat, out in zip(CHATS, outs, strict=True):
        named = llm.chat(chat, wish, mode=out.metrics.mode, speculation="off")
        assert (out.token_ids, out.prompt_token_ids) == (named.token_ids, named.prompt_token_ids)
        assert (out.text, out.reasoning) == (named.text, named.reasoning)
        assert f"{out.metrics.mode}: chances fast " in out.metrics.decision


def test_the_state_is_the_last_row_of_the_prompt(llm: LLM, thinker: Path) -> None:
    """However the prompt is read: in chunks, from the prefix cache, with another one beside it."""
    seen: list[torch.Tensor] = []

    class Watching(LearnedModeRouter):
        def judge(self, facts: PromptFacts) -> Callable[[torch.Tensor], tuple[int, str]]:
            def place(hidden_H: torch.Tensor) -> tuple[int, str]:
                seen.append(hidden_H.clone())
                return 0, "as it is"

            return place

    watching = Watching(**router().model_dump())
    chat = [{"role": "user", "content": " ".join(WORDS * 9)}]
    for _ in range(2):
        llm.chat(chat, sampling(), mode=watching)
    own: dict[str, Any] = {"modes": llm.modes, "kv_memory": "4MiB", "progress": False}
    with LLM(thinker, prompt_rows=7, **own) as chunked:
        chunked.generate([chat, CHATS[0]], sampling(), mode=watching, speculation="off", progress=False)
    assert seen[0].shape == (HIDDEN,)
    assert torch.equal(seen[0], seen[1]) and any(torch.equal(seen[0], one) for one in seen[2:])


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_stream_tells_only_of_the_mode_taken_and_can_be_continued(llm: LLM, place: int) -> None:
    pieces = list(llm.stream_chat(CHATS[3], sampling(n=2, temperature=0.9, seed=3), mode=always(place)))
    out = pieces[-1].output
    assert out is not None and all(one.metrics.mode == BETWEEN[place] for one in out.choices)
    for index, choice in enumerate(out.choices):
        assert [t for p in pieces if p.index == index for t in p.token_ids] == choice.token_ids
    decided = next(piece.decided for piece in pieces if piece.decided is not None)
    assert decided.mode == BETWEEN[place] and decided.why
    begun = ResumeState([out.choices[0].token_ids[:4], []], [decided, None])
    wish = sampling(n=2, temperature=0.9, seed=3)
    again = list(llm.stream(CHATS[3], wish, mode=always((place + 1) % 3), answered=begun))[-1].output
    assert again is not None and again.choices[0].token_ids == out.choices[0].token_ids
    with pytest.raises(ValueError, match="answered.decided is missing"):
        list(llm.stream(CHATS[3], wish, mode=always(place), answered=ResumeState(begun.tokens)))


def test_a_cost_takes_fewer_tokens_the_more_so_where_time_is_short() -> None:
    flat = {"weights": [[0.0] * HIDDEN] * 3, "token_weights": [[0.0] * HIDDEN] * 3}
    chances = router(**flat, bias=(0.0, 1.0, 2.0), tokens=(2, 20, 60))

    def taken(cost: float, **facts: Any) -> int:
        return chances.model_copy(update={"cost": cost}).judge(PromptFacts("x", **facts))(torch.zeros(HIDDEN))[0]

    assert [taken(cost) for cost in (0, 0.006, 0.1)] == [2, 1, 0]
    assert [taken(0.002), taken(0.002, latency_ms=250), taken(0.002, busy=5.0)] == [2, 1, 1]


@pytest.mark.parametrize(("wrong", "says"), [
    ({"layer": 2}, "looks at layer 2, of 32 numbers; this model has 2 layers of 32"),
    ({"bias": (0.0, 0.0)}, "a row of one length for each"),
    ({"cost": float("nan")}, "cost"),
    ({"between": ("fast", "brief", "depe")}, "'depe', which is no preset"),
    ({"between": ("fast", "unsure", "deep")}, "^mode 'unsure' has escalate, which a learned"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(llm: LLM, wrong: dict[str, Any], says: str) -> None:
    refused(says, lambda: llm.chat("one", sampling(), mode=router(**wrong)))


def test_it_is_read_from_a_settings_file(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps({"version": 1, "auto": router().model_dump(mode="json")}), "utf-8")
    assert read_selector(path) == router()
    path.write_text(json.dumps({"version": 1, "auto": {"layer": 1, "between": ["fast"]}}), "utf-8")
    refused("auto", read_selector, path)
