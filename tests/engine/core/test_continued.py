"""An answer that continues tokens of another engine is the answer that it would have been."""

from dataclasses import replace

import pytest
from engine_tools import PLENTY, Ask, Bench, Setting, answer, finish
from exact_tools import EVERY, NAMES, PROMPTS, params, same_answer, tell
from refusals import refused
from thoughts import Bound

from fastslow.engine.core.request import Request
from fastslow.engine.params import GrammarSpec
from fastslow.engine.types import ANSWERED
from fastslow.request.resume import resume

OPEN, CLOSE = 3, 4
DRAFTERS = ("off", *EVERY, *(f"named {name}" for name in NAMES))
LENGTH = 8
WORD = GrammarSpec(regex="[a-c]{2,3}-[0-9]{2}(-x)?")
UNDER_PRESSURE = Setting(pages=8, prompt_rows=9, max_running=16)


def kinds(bench: Bench) -> dict[str, Ask]:
    """An ask of every kind that keeps something of its text."""
    plain = params(max_tokens=LENGTH, repetition_penalty=1.2)
    text = bench.alone(Ask(PROMPTS[1], plain)).stopper.text
    spelt = {"max_tokens": 24, "ignore_eos": False, "frequency_penalty": 1.0}
    thought = (*PROMPTS[3], OPEN)
    shaped = params(
        max_tokens=LENGTH, min_tokens=4, stop_token_ids=[9], logit_bias={7: 4.0, 8: 4.0},
        presence_penalty=0.8, frequency_penalty=0.7,
    )  # fmt: skip
    seeded = params(max_tokens=LENGTH, temperature=0.9, top_p=0.95)
    return {
        "greedy": Ask(PROMPTS[0], plain),
        "seeded": Ask(PROMPTS[2], seeded, seed=3, rule="reproducible", groups=2),
        "stop": Ask(PROMPTS[1], plain.model_copy(update={"stop": (text[len(text) // 2 :][:2],)})),
        "shaped": Ask(PROMPTS[4], shaped, groups=1),
        "thought": Ask(
            thought, params(max_tokens=LENGTH + 4), groups=0, bound=Bound(3, closing="\nNow.\n", opened=True),
        ),
        "settled": Ask(thought, params(max_tokens=LENGTH + 4), bound=Bound(opened=True, every=2, asked=(1, 2))),
        "settled at each token": Ask(
            thought, params(max_tokens=LENGTH + 8), bound=Bound(opened=True, every=1, asked=(1, 3)),
        ),
        "grammar": Ask(PROMPTS[2], params(**spelt), grammar=WORD),
        "thought and grammar": Ask(
            thought, params(**spelt, temperature=0.8), seed=5, rule="reproducible", bound=Bound(2, opened=True),
            grammar=WORD, thinks=True,
        ),
    }  # fmt: skip


def continued(bench: Bench, cuts: list[tuple[Ask, int]], setting: Setting = PLENTY) -> list[Request]:
    """Every answer, continued from its first tokens, all in one batch."""
    tell(bench, [ask for ask, _ in cuts])
    core = bench.core(setting, [ask for ask, _ in cuts])
    requests = [bench.request(n, ask) for n, (ask, _) in enumerate(cuts)]
    for request, (ask, cut) in zip(requests, cuts, strict=True):
        if cut:
            resume(request, answer(bench.alone(ask))[:cut])
    finish(core, requests)
    return requests


def every_cut(bench: Bench, ask: Ask) -> list[tuple[Ask, int]]:
    """At each token, from none of the answer to all of it."""
    return [(ask, cut) for cut in range(len(answer(bench.alone(ask))) + 1)]


def check(bench: Bench, cuts: list[tuple[Ask, int]], requests: list[Request]) -> None:
    for (ask, cut), request in zip(cuts, requests, strict=True):
        whole = bench.alone(ask)
        same_answer(request, whole)
        made = len(answer(whole)) - cut
        assert [s == ANSWERED for s in request.log.sources] == [True] * cut + [False] * made
        assert request.prompt_length == len(ask.tokens) and request.error is None


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_cut_at_every_token_under_every_drafter(moge: Bench, drafter: str) -> None:
    """Without a draft at each token; of the other drafters, each takes every eighth place."""
    cuts = []
    for ask in kinds(moge).values():
        cuts += every_cut(moge, replace(ask, drafter=drafter))
    if drafter != "off":
        cuts = cuts[DRAFTERS.index(drafter) % 8 :: 8]
    requests = continued(moge, cuts)
    check(moge, cuts, requests)
    assert drafter == "off" or sum(r.spec_stats.accepted for r in requests) > 0


def test_what_is_cut_says_different_things(moge: Bench) -> None:
    whole = {name: moge.alone(ask) for name, ask in kinds(moge).items()}
    assert len({tuple(answer(r)) for r in whole.values()}) == len(whole)
    assert whole["stop"].stopper.matched and len(answer(whole["stop"])) < LENGTH
    assert CLOSE in answer(whole["thought"]) and CLOSE in answer(whole["thought and grammar"])
    assert whole["grammar"].stopper.reason == "stop" and min(len(answer(r)) for r in whole.values()) > 3


@pytest.mark.parametrize(("drafter", "setting"), [("off", PLENTY), ("forked", UNDER_PRESSURE)])
def test_cut_answers_and_their_logprobs_beside_others(moge: Bench, drafter: str, setting: Setting) -> None:
    cuts = []
    for name, ask in kinds(moge).items():
        told = ask.params.model_copy(update={"logprobs": 3, "prompt_logprobs": 2})
        if name in ("greedy", "seeded", "stop"):
            told = told.model_copy(update={"prompt_logprobs": None})
        cuts += every_cut(moge, replace(ask, params=told, drafter=drafter))[::2]
    requests = continued(moge, cuts, setting)
    check(moge, cuts, requests)
    pressed = sum(r.spec_stats.preemptions for r in requests) > 0
    assert pressed == (setting is UNDER_PRESSURE)
    assert all(r.spec_stats.cached <= r.prompt_length for r in requests)
    assert sum(r.spec_stats.cached for r in requests) > 0 or not pressed, "prompts are found"
    assert all(len(r.log.logprobs) == len(answer(r)) for r in requests)


@pytest.mark.parametrize("drafter", ["off", "model"])
def test_what_was_answered_stays_though_it_would_not_be_said_again(moge: Bench, drafter: str) -> None:
    """As of a sample without a seed: the rest is what the model says after it."""
    given = [77, 300, 12]
    ask = Ask(PROMPTS[1], params(max_tokens=LENGTH), drafter)
    core = moge.core()
    request = moge.request(0, ask)
    resume(request, given)
    finish(core, [request])
    rest = Ask((*PROMPTS[1], *given), params(max_tokens=LENGTH - len(given)))
    assert answer(request) == [*given, *answer(moge.alone(rest))] and answer(moge.alone(ask))[2] != given[2]


def test_a_continued_answer_counts_what_its_engine_made(moge: Bench) -> None:
    ask = kinds(moge)["greedy"]
    (request,) = continued(moge, [(ask, 5)])
    assert request.made == LENGTH - 5 and request.spec_stats.steps == LENGTH - 5
    assert request.later_tokens == LENGTH - 5
    (over,) = continued(moge, [(ask, LENGTH)])
    assert over.made == 0 and over.spec_stats.steps == 0 and over.stopper.reason == "length"


def test_a_long_answer_under_a_grammar_goes_on(moge: Bench) -> None:
    """More tokens at once than a grammar reads at a time."""
    wish = params(max_tokens=150, ignore_eos=False)
    ask = Ask(PROMPTS[0], wish, grammar=GrammarSpec(regex="([a-c]{1,3}[0-9]){60,90}"))
    whole = answer(moge.alone(ask))
    assert len(whole) > 130
    cuts = [(ask, cut) for cut in (63, 64, 65, 66, 128, 129, 130, len(whole) - 1, len(whole))]
    check(moge, cuts, continued(moge, cuts))


def test_what_does_not_fit_is_refused(moge: Bench) -> None:
    asks = kinds(moge)
    spelt = answer(moge.alone(asks["grammar"]))
    stopped = answer(moge.alone(asks["stop"]))
    refused("the grammar of this call does not allow", resume, moge.request(0, asks["grammar"]), [*spelt[:2], 300])
    refused("the grammar of this call does not allow", resume, moge.request(0, asks["grammar"]), [*spelt, spelt[0]])
    refused(f"ends with token {len(stopped)} of them", resume, moge.request(0, asks["stop"]), [*stopped, 7, 8])
