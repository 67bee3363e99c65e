"""A thinking budget holds to the token, whatever drafts and whatever runs beside it."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from distributions import uniform_fits
from engine_tools import Ask, Bench, Setting, answer
from exact_tools import EVERY, PROMPTS, VOCAB, check, params
from thoughts import Bound

from fastslow.engine.params import Loop
from fastslow.engine.text.thought import ThoughtTags
from fastslow.engine.types import FORCED

OPEN, CLOSE = 3, 4
REASON = ThoughtTags("<reason>", "</reason>")  # several tokens each
PHRASE = "\nNow the answer.\n"
BUDGETS = (0, 1, 7, 64)


def closing(bench: Bench) -> list[int]:
    assert bench.tokenizer is not None
    return [*bench.tokenizer.encode(PHRASE, add_special=False), CLOSE]


def eight(drafter: str) -> list[Ask]:
    """All budgets twice, in all modes: thoughts that the prompt opens, and that the answer does."""
    asks = []
    for n, most in enumerate((*BUDGETS, *BUDGETS)):
        opened = n < len(BUDGETS)
        prompt = (*PROMPTS[n % 5], OPEN) if opened else PROMPTS[n % 5]
        # a bias opens the thought; later its penalty is larger
        shape = {} if opened else {"logit_bias": {OPEN: 60.0}, "frequency_penalty": 2.0}
        asks.append(Ask(
            prompt, params(max_tokens=most + 24, **shape), drafter, groups=(None, 0, 1, 2)[n % 4],
            bound=Bound(most, closing=PHRASE, opened=opened),
        ))  # fmt: skip
    return asks


def held(bench: Bench, ask: Ask, tokens: list[int]) -> bool:
    """The budget was not exceeded; whether it was reached, which an answer without it must say."""
    assert ask.bound is not None and ask.bound.most is not None
    most, ends = ask.bound.most, closing(bench)
    first = 0 if ask.bound.opened else tokens.index(OPEN) + 1
    thought = tokens[first : tokens.index(CLOSE)]
    free = answer(bench.alone(replace(ask, bound=None)))[first:]
    if CLOSE in free[:most]:
        assert len(thought) < most
        return False
    assert tokens[first : first + most] == free[:most], "what is not forced is the model's own"
    assert tokens[first + most : first + most + len(ends)] == ends
    assert len(tokens) > first + most + len(ends), "an answer follows"
    text = [tokens[i : i + len(ends) - 1] for i in range(len(tokens))]
    assert text.count(ends[:-1]) == 1, "the phrase comes once"
    return True


@pytest.mark.parametrize("drafter", EVERY)
def test_a_budget_holds_to_the_token_under_every_drafter(moge: Bench, drafter: str) -> None:
    """All budgets once: thoughts that the prompt opens, and that the answer does, in turn."""
    asks = [eight(drafter)[n] for n in ((0, 5, 2, 7), (4, 1, 6, 3))[EVERY.index(drafter) % 2]]
    assert check(moge, asks)["accepted"] > 0
    reached = sum(held(moge, ask, answer(moge.alone(ask))) for ask in asks)
    assert reached >= len(asks) - 1, "a model that closes its thoughts itself proves nothing"


@pytest.mark.parametrize("drafter", ["common", "model"])
def test_soft_budgets_and_circles_draft_alike(moge: Bench, drafter: str) -> None:
    bounds = [
        Bound(30, soft=20, opened=True), Bound(8, soft=8, closing=PHRASE, opened=True),
        Bound(60, loop=Loop(), closing=PHRASE, opened=True), Bound(loop=Loop(), opened=True),
        Bound(70, soft=5, opened=True),
    ]  # fmt: skip
    asks = [
        Ask((*PROMPTS[n], OPEN), params(max_tokens=60), drafter, groups=(None, 2)[n % 2], bound=b)
        for n, b in enumerate(bounds)
    ]
    asks[2] = replace(asks[2], params=params(max_tokens=60, logit_bias={70: 100.0}))
    assert check(moge, asks)["accepted"] > 0
    plain = [moge.alone(ask) for ask in asks]
    outcomes = [r.thinking.outcome(r.tokens)[:2] for r in plain if r.thinking is not None]
    assert {outcome[1] for outcome in outcomes} >= {"model", "loop"}, outcomes
    assert all(spent <= (b.most or 60) for (spent, _), b in zip(outcomes, bounds))


WARNED = Bound(40, closing=PHRASE, opened=True, warning=" Hm.", warn_at=4, ends_at=30, room=44)
CIRCLING = Loop(times=2, least=16, stale=24, answer=True)
STEERED: list[tuple[Bound, dict[str, Any], dict[str, Any], dict[int, float]]] = [
    # with the sampling of the thought, that of the answer, and a bias of both
    (Bound(9, closing=PHRASE, opened=True), {"frequency_penalty": 1.5}, {}, {}),
    (Bound(12, opened=True), {}, {"repetition_penalty": 1.4, "presence_penalty": 0.5}, {}),
    (WARNED, {}, {"frequency_penalty": 0.7}, {18: 12.0}),
    (Bound(opened=True, loop=CIRCLING, ends_at=36, room=44), {}, {}, {70: 60.0}),
    (Bound(opened=True, closing=PHRASE, ends=frozenset({70}), ends_at=40), {}, {}, {70: 3.0}),
    (Bound(opened=True, tags=REASON, ends=frozenset({70}), ends_at=40), {}, {}, {70: 9.0}),
]


@pytest.mark.parametrize("drafter", EVERY)
def test_what_steers_a_thought_holds_under_every_drafter(moge: Bench, drafter: str) -> None:
    """Every control at its place inside accepted runs; greedy, or drawn with a seed: with the next drafter the other."""
    asks = []
    for n, (bound, own, rest, bias) in enumerate(STEERED):
        shape = {"max_tokens": 44, "logit_bias": bias}
        thought, answered = params(**{**shape, **own}), params(**{**shape, **rest})
        groups = (None, 0, 2)[n % 3]
        asks.append(Ask((*PROMPTS[n % 5], OPEN), answered, drafter, 9, groups, bound=bound, thought=thought))
        warm = [p.model_copy(update={"temperature": t}) for p, t in ((answered, 0.0), (thought, 0.8))]
        drawn = replace(asks[-1], params=warm[n % 2], thought=warm[1 - n % 2], seed=n)
        asks.append(replace(drawn, rule="reproducible"))
    odd = EVERY.index(drafter) % 2
    assert check(moge, [asks[2 * n + (n + odd) % 2] for n in range(len(STEERED))])["accepted"] > 0
    endings = [r.thinking.outcome(r.tokens) for r in map(moge.alone, asks) if r.thinking]
    assert all(not one.open and one.spent <= (ask.bound.most or 40) for one, ask in zip(endings, asks) if ask.bound)
    assert {one.ended for one in endings} >= {"budget", "loop", "room"}, endings
    assert {moge.alone(ask).stopper.reason for ask in asks} == {"length", "loop"}
    assert max(one.put_in for one in endings) > len(closing(moge)), "a warning came, too"


SETTLING: list[tuple[Bound, dict[str, Any]]] = [
    (Bound(opened=True, every=4, asked=(3, 2)), {}),
    (Bound(opened=True, every=3, asked=(1, 3), closing=PHRASE), {"temperature": 0.8}),
    (Bound(20, opened=True, every=5, asked=(2, 2), warning=" Hm.", warn_at=4), {}),
    (Bound(opened=True, every=2, asked=(1, 2), prefix=(80, 81, 82)), {"frequency_penalty": 1.0}),
    (Bound(opened=True, every=7, asked=(4, 2), ends_at=36, room=44), {"temperature": 1.1}),
    (Bound(opened=True, every=1, asked=(5, 2)), {"logprobs": 1, "presence_penalty": 0.5}),
    (Bound(opened=True, every=3, asked=(2, 1), sure=0.2), {"temperature": 0.7}),
]  # fmt: skip


def settling(drafter: str) -> list[Ask]:
    return [
        Ask((*PROMPTS[n % 5], OPEN), params(max_tokens=44, **shape), drafter, 9, (None, 0, 2)[n % 3],
            seed=n, bound=bound, rule="reproducible")
        for n, (bound, shape) in enumerate(SETTLING)
    ]  # fmt: skip


@pytest.mark.parametrize("drafter", EVERY)
def test_a_thought_ends_where_its_answer_is_settled_under_every_drafter(moge: Bench, drafter: str) -> None:
    """The questions, and the place where a thought ends by them, are the same with drafts: every second of the asks for
    each drafter, for half of the drafters with few pages and in small chunks."""
    asks, (few, odd) = settling(drafter), divmod(EVERY.index(drafter) % 4, 2)
    sums = check(moge, asks[odd::2], Setting(pages=22, prompt_rows=5) if few else Setting())
    assert sums["accepted"] > 0 and (sums["preempted"] > 0) is bool(few)
    plain = list(map(moge.alone, asks))
    assert all(r.spec_stats.probe_rows > 0 for r in plain)
    assert sum(r.thinking.outcome(r.tokens).ended == "confident" for r in plain if r.thinking) > 2


def test_a_settled_thought_is_one_that_is_cut_there(moge: Bench) -> None:
    """The thought ends where the model, asked plainly, would say the same twice in a row, and nowhere before."""
    found = 0
    for ask in settling("off"):
        bound, request = ask.bound, moge.alone(ask)
        assert bound is not None and bound.every is not None and request.thinking is not None
        spent, ended, *_ = request.thinking.outcome(request.tokens)
        free = answer(moge.alone(replace(ask, bound=replace(bound, every=None))))
        if bound.warning:
            continue
        start = [*(closing(moge) if bound.closing else [CLOSE]), *bound.prefix]
        said, same, most = list[int](), 0, 43
        for place in range(bound.every, spent + 1, bound.every):
            text = (*ask.tokens, *free[:place], *start)
            if place + len(start) + bound.asked[0] - 1 > most:
                break
            told = moge.alone(Ask(text, params(max_tokens=bound.asked[0], logprobs=1), groups=ask.groups))
            least = min(each[token] for each, token in zip(told.log.logprobs, answer(told)))
            same = same + 1 if answer(told) == said else 1
            same = 0 if bound.sure and math.exp(least) < bound.sure else same
            said = answer(told)
            assert (same >= bound.asked[1]) == (place == spent and ended == "confident")
        found += ended == "confident"
        if ended == "confident":
            cut = moge.alone(replace(ask, bound=replace(bound, every=None, most=spent)))
            assert answer(request) == answer(cut) and [*request.log.logprobs] == [*cut.log.logprobs]
    assert found > 2


@pytest.mark.parametrize("drafter", ["sampled", "self1"])
def test_drawn_tokens_have_their_law_where_answers_are_asked_for(moge: Bench, drafter: str) -> None:
    """By the integral transform of each token, also of those that were drawn while a question went on."""
    drawn = params(max_tokens=14, temperature=1.0)
    bound = Bound(opened=True, every=2, asked=(3, 2))
    requests = moge.run([Ask((*PROMPTS[n % 5], OPEN), drawn, drafter, seed=n, bound=bound) for n in range(80)])
    assert sum(r.spec_stats.accepted for r in requests) > 0
    assert sum(r.spec_stats.probe_rows for r in requests) > 1000
    scored = params(max_tokens=1, prompt_logprobs=VOCAB)
    random, values = np.random.default_rng(0), list[float]()
    for request, told in zip(requests, moge.run([Ask(tuple(r.tokens), scored) for r in requests])):
        tables = told.log.prompt_logprobs[request.prompt_length - 1 :]
        for token, source, table in zip(answer(request), request.log.sources, tables):
            if source != FORCED:
                below = sum(math.exp(value) for other, value in table.items() if other < token)
                values.append(below + random.random() * math.exp(table[token]))
    uniform_fits(np.array(values))


@pytest.mark.parametrize("drafter", EVERY)
def test_a_thought_and_its_answer_may_have_other_drafters(moge: Bench, drafter: str) -> None:
    """Each drafter takes over from another one inside an answer, beside requests that keep theirs."""
    other = EVERY[EVERY.index(drafter) - 1]
    asks = [
        Ask((*PROMPTS[n], OPEN), params(max_tokens=36), drafter, groups=(None, 1)[n % 2],
            bound=Bound(most, opened=True), within=within)
        for n, (most, within) in enumerate(((9, other), (16, other), (11, ""), (14, "off")))
    ]  # fmt: skip
    setting = (Setting(), Setting(pages=30, prompt_rows=5))[EVERY.index(drafter) % 2]
    assert check(moge, asks, setting)["accepted"] > 0


@pytest.mark.parametrize(
    ("setting", "warm"), [(Setting(pages=32, prompt_rows=5), False), (Setting(max_running=3), True)]
)
def test_budgets_hold_through_preemption_chunks_and_prefix_hits(moge: Bench, setting: Setting, warm: bool) -> None:
    drafters = ("self0", "forked", "model", "ngram+self", "common", "random", "erring", "off")
    sums = check(moge, [replace(eight(d)[n], drafter=d) for n, d in enumerate(drafters)], setting, warm)
    assert 0 < sums["accepted"] < sums["drafted"]
    assert sums["cached"] > 0 if warm else sums["preempted"] > 0


@pytest.mark.parametrize("drafter", ["forked", "self1"])
def test_stop_strings_and_budgets_together(moge: Bench, drafter: str) -> None:
    """A stop string holds for the whole text: the thought, the closing phrase, the answer."""
    free = Ask((*PROMPTS[1], OPEN), params(max_tokens=40), bound=Bound(7, 0, None, PHRASE, True))
    text = moge.alone(free).stopper.text
    thought, _, said = text.partition(PHRASE)
    assert len(thought) > 4 and len(said) > 6
    for stop, kept in ((thought[2:4], "thought"), ("the ans", "phrase"), (said[3:5], "answer")):
        ask = replace(free, params=params(max_tokens=40, stop=[stop]), drafter=drafter, nodes=9)
        assert check(moge, [ask])["accepted"] > 0 or kept == "thought"
        stopper = moge.alone(ask).stopper
        assert (stopper.reason, stopper.matched) == ("stop", stop) and stopper.text == text[: text.index(stop)]
    check(moge, [replace(free, params=params(max_tokens=40, stop=["the ans"], min_tokens=30), drafter=drafter)])
    ends = params(max_tokens=40, stop_token_ids=[CLOSE])
    check(moge, [replace(free, params=ends, drafter=drafter)])
    stopped = moge.alone(replace(free, params=ends))
    assert answer(stopped)[-1] == CLOSE and stopped.stopper.matched == CLOSE


@pytest.mark.parametrize("drafter", ["forked", "self1"])
def test_forced_tokens_have_the_models_own_logprobs(moge: Bench, drafter: str) -> None:
    asks = [replace(ask, params=params(max_tokens=30, logprobs=2)) for ask in eight(drafter)]
    asks = asks[: len(BUDGETS) - 1]
    check(moge, asks)
    for ask, most in zip(asks, BUDGETS):
        first = moge.alone(ask).log.logprobs[most]
        assert first[closing(moge)[0]] < max(first.values()), "forced, not the likeliest"
