"""The adaptive length: what it believes, what it runs, and that it never runs what does not pay."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastslow.engine.types import Tree
from fastslow.policies.admit import MARGIN, admit, best_length
from fastslow.policies.clock import Clock
from fastslow.policies.length import AdaptiveLength
from fastslow.policies.odds import Leaning, Odds
from fastslow.policies.pace import Pace

REQUEST: Any = SimpleNamespace(groups=None)
FLAT = Pace([1, 128], [1.0, 1.0])  # rows cost nothing
STEEP = Pace([1, 2, 128], [1.0, 2.0, 128.0])  # a row costs a step


def policy(pace: Pace, most: int = 8, odds: Odds | None = None) -> tuple[AdaptiveLength, Clock]:
    clock = Clock(lambda groups: pace)
    return AdaptiveLength(most, odds or Odds(), clock, "drafter"), clock


def rate(kept: list[list[int]], survival: list[list[float]], rows: int, pace: Pace) -> float:
    tokens = len(survival) + sum(survival[b][i] for b, nodes in enumerate(kept) for i in nodes)
    count = sum(map(len, kept))
    return tokens / pace.seconds(rows + count) / (1 if count else 1 / MARGIN)


def test_admit_finds_the_best_of_all_prefixes() -> None:
    draws = random.Random(0)
    pace = Pace([1, 2, 4, 8, 16], [1.0, 1.1, 1.4, 2.2, 4.5])
    for _ in range(50):
        survival = []
        for _ in range(3):
            chance, chain = 1.0, []
            for _ in range(draws.randrange(5)):
                chance *= draws.random()
                chain.append(chance)
            survival.append(chain)
        kept = admit(survival, [len(s) for s in survival], 3, pace)
        every = itertools.product(*(range(len(s) + 1) for s in survival))
        best = max(rate([list(range(n)) for n in lengths], survival, 3, pace) for lengths in every)
        assert rate(kept, survival, 3, pace) == pytest.approx(best)


def test_admit_takes_parents_with_their_children_and_leaves_fixed_requests_alone() -> None:
    kept = admit([[0.5, 0.5, 0.5, 0.1], None, []], [4, 3, 0], 3, FLAT)
    assert kept == [[0, 1, 2, 3], [0, 1, 2], []]
    kept = admit([[0.5, 0.5, 0.5, 0.1], None, []], [4, 3, 0], 3, STEEP)
    assert kept == [[], [0, 1, 2], []]


def test_a_drafter_that_takes_time_drafts_less_far() -> None:
    chances = [0.9**n for n in range(1, 9)]
    assert best_length(chances, 1, 0.0, FLAT) == 8
    lengths = [best_length(chances, 1, each, FLAT) for each in (0.1, 0.3, 0.5, 2.0)]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] > lengths[-1] == 0


def test_nodes_behind_a_refused_one_are_not_judged() -> None:
    odds = Odds()
    leaning = Leaning(odds)
    before = odds.of(3, None)
    for _ in range(20):
        leaning.learn(Tree.chain([1, 2, 3]), [0])
    assert odds.of(1, None) > 0.9 and odds.of(2, None) < 0.2
    assert odds.of(3, None) == before


def test_siblings_are_judged_together() -> None:
    odds = Odds()
    tree = Tree([1, 2, 3], [-1, -1, 1], scores=[0.9, 0.3, 0.25])
    for _ in range(200):
        Leaning(odds).learn(tree, [1])
    assert odds.of(1, 0.9) < 0.1 and odds.of(1, 0.3) > 0.9
    assert odds.of(2, 0.9) < 0.1  # 0.25 of 0.3 was not accepted either


def test_each_drafter_behind_a_name_has_odds_of_its_own() -> None:
    odds = Odds()
    leaning = Leaning(odds)
    for _ in range(50):
        leaning.learn(Tree([1], [-1], scores=[0.5], by=[0]), [0])
        leaning.learn(Tree([1], [-1], scores=[0.5], by=[1]), [])
    assert odds.of(1, 0.5, 0) > 0.9 and odds.of(1, 0.5, 1) < 0.1
    (sure,), (unsure,) = (leaning.survival(Tree([1], [-1], scores=[0.5], by=[n])) for n in (0, 1))
    assert sure > 0.9 and unsure < 0.1


def test_what_tokens_and_rows_are_worth() -> None:
    clock = Clock(lambda groups: Pace([1, 2, 4, 8], [1.0, 1.2, 2.0, 3.0]))
    assert clock.worth([REQUEST]) == pytest.approx((1.0, 1 / 3))
    assert clock.worth([REQUEST] * 2) == pytest.approx((0.6, 0.3))


def test_a_request_leans_away_from_what_others_see() -> None:
    odds = Odds()
    for _ in range(100):
        Leaning(odds).learn(Tree.chain([1]), [0])
    mine = Leaning(odds)
    for _ in range(10):
        mine.learn(Tree.chain([1]), [])
    assert mine.of(1, None) < odds.of(1, None) - 0.1


def test_scores_count_until_more_is_known() -> None:
    sure, unsure = Odds().of(1, 0.95), Odds().of(1, 0.1)
    assert sure == 0.95 and unsure == 0.1


def test_a_pace_is_corrected_by_the_steps_that_run() -> None:
    pace = Pace([1, 4, 16], [1.0, 1.2, 4.0])
    for _ in range(100):
        pace.note(1, 2.0)
        pace.note(4, 7.0)
    assert pace.seconds(4) / pace.seconds(1) == pytest.approx(3.5, rel=0.01)
    assert pace.seconds(1) == pytest.approx(2.0, rel=0.01)
    assert pace.seconds(16) == pytest.approx(7.0 / 1.2 * 4.0, rel=0.01), "the nearest speaks for it"
    for _ in range(1000):
        pace.note(1, 4.0)  # the machine is half as fast now, and 4 rows were long not seen
    assert pace.seconds(4) / pace.seconds(1) == pytest.approx(1.2, rel=0.01)


def test_a_step_that_was_held_up_hardly_counts() -> None:
    pace = Pace([1, 4], [1.0, 1.2])
    for _ in range(16):
        pace.note(1, 1.0)
    pace.note(1, 1000.0)
    for _ in range(15):
        pace.note(1, 1.0)
    assert pace.seconds(1) == pytest.approx(1.0, rel=0.05)


def test_a_pace_grows_with_rows_whatever_noise_says() -> None:
    pace = Pace([1, 2, 4], [1.0, 0.5, 2.0])
    times = [pace.seconds(n) for n in (1, 2, 3, 4, 8, 1024, 4096)]
    assert times == sorted(times) and times[4] == pytest.approx(4.0)
    # what took longer than more rows was held up, and does not make those look dear
    held_up = Pace([1, 2, 4, 8], [1.0, 1.1, 5.0, 1.5])
    assert held_up.seconds(4) == 1.5 and held_up.seconds(2) == 1.1
    with pytest.raises(ValueError, match="must ascend from 1"):
        Pace([2, 4], [1.0, 1.0])
    with pytest.raises(ValueError, match="positive seconds"):
        Pace([1, 2], [1.0])


def test_drafts_that_are_refused_stop_and_are_tried_again() -> None:
    length, _ = policy(Pace([1, 2, 128], [1.0, 1.3, 40.0]))
    ran: list[int] = []
    for _ in range(600):
        asked = length.plan(REQUEST, 1)
        tree = Tree.chain(list(range(asked)))
        nodes = admit([length.survival(tree)], [asked], 1, FLAT_AT_ONE)[0]
        tree = tree.only(nodes)
        length.record(tree, [])
        ran.append(len(nodes))
    late = ran[-300:]
    assert 0 < sum(late) <= 5 and max(late) == 1


FLAT_AT_ONE = Pace([1, 2, 128], [1.0, 1.3, 40.0])


def test_good_drafts_run_to_the_end_and_bad_ones_recover() -> None:
    odds = Odds()
    length, _ = policy(FLAT, 8, odds)

    def step(accepted: int) -> int:
        asked = length.plan(REQUEST, 1)
        tree = Tree.chain(list(range(asked)))
        nodes = admit([length.survival(tree)], [asked], 1, SLOPE)[0]
        length.record(tree.only(nodes), list(range(min(accepted, len(nodes)))))
        return len(nodes)

    assert step(8) > 0
    assert [step(8) for _ in range(20)][-1] == 8
    for _ in range(60):
        step(0)
    assert step(0) == 0
    assert max(step(8) for _ in range(300)) == 8


SLOPE = Pace([1, 2, 9, 128], [1.0, 1.15, 1.9, 30.0])


def test_a_slow_drafter_that_is_refused_is_hardly_asked() -> None:
    length, clock = policy(FLAT)
    clock.drafted("drafter", 0.8, 1, 1)
    asked = []
    for _ in range(1000):
        asked.append(length.plan(REQUEST, 1))
        length.record(Tree.chain(list(range(asked[-1]))), [])
    assert 0 < sum(asked[-500:]) <= 4


def test_what_is_left_of_a_tree_keeps_its_shape() -> None:
    probs = np.arange(8, dtype=np.float32).reshape(4, 2)
    tree = Tree([5, 6, 7, 8], [-1, -1, 1, 2], probs, [0.9, 0.8, 0.7, 0.6])
    left = tree.only([1, 2])
    assert (list(left.tokens), list(left.parents)) == ([6, 7], [-1, 0])
    assert left.probs is not None and left.probs.tolist() == [[2.0, 3.0], [4.0, 5.0]]
    assert left.scores == [0.8, 0.7]
    assert tree.only([0, 1, 2, 3]) is tree and tree.only([]).tokens == []
