"""Masks that take long: the steps of others go on without that request, and no token changes."""

import threading
from concurrent.futures import wait
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engine_tools import Ask, Bench, answer, finish, outcome
from exact_tools import CHAINS, ORACLES, PROMPTS, TREES, WatchedGrammar, check, params, tell, watch

from fastslow.engine.core.request import Request
from fastslow.engine.core.scheduler import ScheduledChunk
from fastslow.engine.core.step.layout import left_out
from fastslow.engine.core.step.masks import PATIENCE, MaskMaker, _Job, _Lanes
from fastslow.engine.params import GrammarSpec
from fastslow.engine.sampling.grammars.grammar import GrammarError
from fastslow.engine.types import Tree

DRAFTERS = ("off", *CHAINS, *TREES, *ORACLES)
SOON = 60.0
WORD = GrammarSpec(regex="[a-f]{12,16}")


def asks_for(drafter: str, temperature: float) -> list[Ask]:
    hot = {"temperature": temperature, "ignore_eos": False}
    rule = "reproducible" if temperature else "token"
    return [
        Ask(PROMPTS[1], params(**hot), drafter, seed=5, rule=rule, grammar=WORD),
        Ask(PROMPTS[2], params(max_tokens=9), drafter),
        Ask(PROMPTS[3], params(**hot, logprobs=2), drafter, seed=6, rule=rule, grammar=WORD),
        Ask(PROMPTS[4], params(**hot, prompt_logprobs=1), drafter, rule=rule, grammar=WORD),
    ]


@pytest.mark.parametrize(("drafter", "temperature"), [(name, float(n % 2)) for n, name in enumerate(DRAFTERS)])
def test_late_masks_change_no_token(
    moge: Bench, drafter: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second text, the mask comes after the step has gone on without it."""
    asks = asks_for(drafter, temperature)
    tell(moge, asks)
    waiting: dict[tuple[int, ...], threading.Event] = {}
    left, stuck = list[Request](), list[list[int]]()

    def before(tokens: list[int], drafted: list[int]) -> None:
        if not threading.current_thread().name.startswith("fastslow-masks"):
            return  # a drafter asks for itself, or no step waits for this mask
        new = not drafted and len(tokens) % 2 and tuple(tokens) not in waiting and not stuck
        if new and not waiting.setdefault(tuple(tokens), threading.Event()).wait(SOON):
            stuck.append(tokens)

    def noted(late: Any, *step: Any) -> Any:
        for one in late:
            left.append(one)
            # perhaps its thread has not begun yet
            waiting.setdefault(tuple(one.tokens), threading.Event()).set()
        return left_out(late, *step)

    watch(moge, monkeypatch, before)
    monkeypatch.setattr("fastslow.engine.core.engine_core.left_out", noted)
    check(moge, asks)
    assert left and not stuck, "a step waits for a late mask"


@pytest.mark.parametrize("drafter", ["model", "sampled", "erring"])
def test_masks_that_are_known_to_be_slow_are_made_before_the_step(
    moge: Bench, drafter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = asks_for(drafter, 1.0)
    tell(moge, asks)
    threads = set[str]()
    watch(moge, monkeypatch, lambda *_: threads.add(threading.current_thread().name), seconds=1e9)
    for one, ask in zip(moge.run(asks), asks, strict=True):
        assert outcome(one) == outcome(moge.alone(ask))
        assert one.grammar is None or not one.spec_stats.drafted
    assert any("late" in name for name in threads)


def test_others_go_on_while_a_mask_is_made(moge: Bench) -> None:
    held, free = Ask(PROMPTS[0], params(), grammar=WORD), Ask(PROMPTS[1], params(max_tokens=30))
    requests = [moge.request(n, ask) for n, ask in enumerate((held, free))]
    opened = threading.Event()
    requests[0].grammar = WatchedGrammar(requests[0].grammar, lambda *_: opened.wait(SOON))  # type: ignore[assignment]
    core = moge.core()
    for request in requests:
        core.add(request)
    while not requests[1].done:
        core.step()
    assert not requests[0].done and answer(requests[0]) == []
    core.step()  # nothing is left to run
    assert answer(requests[0]) == []
    opened.set()
    finish(core, [])
    for request, ask in zip(requests, (held, free), strict=True):
        assert outcome(request) == outcome(moge.alone(ask))


def test_who_is_followed_slowly_is_followed_beside_the_steps(moge: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asks, threads = asks_for("off", 1.0), list[str]()

    def before(_: list[int], drafted: list[int]) -> None:
        if drafted:
            threads.append(threading.current_thread().name)

    watch(moge, monkeypatch, before, walks_slowly=True)
    for one, ask in zip(moge.run(asks), asks, strict=True):
        assert outcome(one) == outcome(moge.alone(ask))
    assert threads and all(name.startswith("fastslow-late-masks") for name in threads)


def test_a_request_may_end_while_its_mask_is_made(moge: Bench) -> None:
    request, opened = moge.request(0, Ask(PROMPTS[0], params(), grammar=WORD)), threading.Event()
    request.grammar = WatchedGrammar(request.grammar, lambda *_: opened.wait(SOON))  # type: ignore[assignment]
    core = moge.core()
    core.add(request)
    core.step()
    core.end([request], "cancelled", None)
    assert core.idle and request.stopper.reason == "cancelled"
    opened.set()
    finish(core, [moge.request(1, Ask(PROMPTS[0], params(), grammar=WORD))])


@pytest.mark.parametrize("sampled", [False, True])
def test_what_was_sampled_does_not_decide_whether_a_step_counts(
    moge: Bench, sampled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first mask is ready, one after a drafted token is not."""
    request, first_made = moge.request(0, Ask(PROMPTS[0], params(), grammar=WORD)), threading.Event()
    given_up = threading.Event()

    def before(_: list[int], drafted: list[int]) -> None:
        if len(drafted) == 1:
            first_made.set()
            given_up.wait(SOON)

    def waits(jobs: Any, patience: float | None = None) -> None:
        if patience is None:  # the step waits for the first mask alone
            given_up.set()
        wait(jobs, patience)

    monkeypatch.setattr("fastslow.engine.core.step.masks.wait", waits)
    assert moge.tokenizer is not None
    grammar = WatchedGrammar(request.grammar, before)
    request.grammar = grammar  # type: ignore[assignment]
    a, b = (moge.tokenizer.encode(letter, add_special=False)[0] for letter in "ab")
    probs = np.full((2, 320), 1 / 320, np.float32) if sampled else None
    tree = replace(Tree.chain([a, b]), probs=probs)
    with MaskMaker().beside([request], [tree]) as late:
        assert first_made.wait(SOON)
    given_up.set()
    assert list(late) == ([] if sampled else [request])
    if sampled:  # its last mask is made no more: where the answer comes there, its step ends
        assert grammar.at(request.tokens, [a]).allowed is not None
        with pytest.raises(GrammarError, match="not made in time"):
            grammar.at(request.tokens, [a, b])


def test_a_step_has_little_time_for_the_masks_of_a_share(moge: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 short masks of one share take long together: the others are made beside the steps."""
    opened = threading.Event()
    watch(moge, monkeypatch, lambda *_: opened.wait(SOON), seconds=PATIENCE / 2)
    ask = Ask(PROMPTS[0], params(), grammar=WORD)
    requests = [moge.request(n, ask, share="greedy") for n in range(16)]
    requests.append(moge.request(16, ask, share="modest"))
    monkeypatch.setattr("fastslow.engine.core.step.masks.MASK_THREADS", 2)
    maker = MaskMaker()
    work = maker.runnable([ScheduledChunk(request, request.pending) for request in requests])
    opened.set()
    assert [item.request for item in work] == [*requests[:2], requests[16]]
    assert [maker.slow(request) for request in requests] == [False] * 2 + [True] * 14 + [False]


def test_slow_masks_are_made_in_turns_of_shares(moge: Bench) -> None:
    lane, opened, order = _Lanes(1, "masks"), threading.Event(), list[str]()
    jobs = list[Any]()
    for number, share in enumerate(["greedy"] * 4 + ["modest"] * 2):
        request = moge.request(number, Ask(PROMPTS[0], params(), grammar=WORD), share=share)

        def before(*_: Any, share: str = share) -> None:
            assert opened.wait(SOON)
            order.append(share)

        request.grammar = WatchedGrammar(request.grammar, before)  # type: ignore[assignment]
        jobs.append(lane.submit(_Job(request, Tree())))
    opened.set()
    wait(jobs)
    assert "modest" in order[:3] and order[-1] == "greedy"
