"""The adaptive length: what it believes, what it runs, and that it never runs what does not pay; and how the seconds of
steps are measured, kept where that took long, and never believed from a broken file."""

import itertools
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoints import write_dense
from engine_tools import Ask, Bench, RandomDraft
from hybrid_model import CONFIG, table
from layer_fuzz import load

from fastslow.engine.backends.cpu.compiled import kernel_cache
from fastslow.engine.backends.loader import load_model
from fastslow.engine.backends.torch.decoder import Decoder
from fastslow.engine.host.machine import Watch
from fastslow.engine.kv.state.layout import UNFOLDED
from fastslow.engine.model.base import Model
from fastslow.engine.params import SamplingParams, Speculation
from fastslow.engine.rows import Rows, RunningRows
from fastslow.engine.types import DraftCall, ModelOutput, Tree
from fastslow.policies.speculation import cost_curve
from fastslow.policies.speculation.acceptance import AcceptanceModel, RequestBias
from fastslow.policies.speculation.controller import SpeculationController
from fastslow.policies.speculation.cost_curve import step_seconds
from fastslow.policies.speculation.loss_budget import LossBudgets
from fastslow.policies.speculation.planner import AdaptiveLength, best_length, nodes_that_pay
from fastslow.policies.speculation.step_cost import StepCostCurve, StepCosts
from fastslow.policies.speculation.tuning import SpeculationTuning

NODE = Tree.chain([1])


def view(groups: int | None = None) -> Any:
    return SimpleNamespace(groups=groups, memory_key=None)


REQUEST = view()
FLAT = StepCostCurve([1, 128], [1.0, 1.0])  # rows cost nothing
STEEP = StepCostCurve([1, 2, 128], [1.0, 2.0, 128.0])  # a row costs a step


def policy(curve: StepCostCurve, most: int = 8) -> tuple[AdaptiveLength, StepCosts]:
    tuning = SpeculationTuning(most_nodes=most)
    costs = StepCosts(lambda groups: curve, tuning)
    return AdaptiveLength("drafter", AcceptanceModel(tuning), costs, LossBudgets(tuning), tuning), costs


def rate(kept: list[list[int]], survival: list[list[float]], rows: int, curve: StepCostCurve) -> float:
    tokens = len(survival) + sum(survival[b][i] for b, nodes in enumerate(kept) for i in nodes)
    return tokens / curve.seconds(rows + sum(map(len, kept)))


def test_nodes_that_pay_finds_the_best_of_all_prefixes() -> None:
    draws = random.Random(0)
    curve = StepCostCurve([1, 2, 4, 8, 16], [1.0, 1.1, 1.4, 2.2, 4.5])
    for _ in range(50):
        survival = []
        for _ in range(3):
            chance, chain = 1.0, []
            for _ in range(draws.randrange(5)):
                chance *= draws.random()
                chain.append(chance)
            survival.append(chain)
        kept = nodes_that_pay(survival, [len(s) for s in survival], 3, curve)
        every = itertools.product(*(range(len(s) + 1) for s in survival))
        best = max(rate([list(range(n)) for n in lengths], survival, 3, curve) for lengths in every)
        assert rate(kept, survival, 3, curve) == pytest.approx(best)


def test_nodes_that_pay_take_parents_along_and_fewer_of_a_slow_drafter() -> None:
    kept = nodes_that_pay([[0.5, 0.5, 0.5, 0.1], None, []], [4, 3, 0], 3, FLAT)
    assert kept == [[0, 1, 2, 3], [0, 1, 2], []]
    kept = nodes_that_pay([[0.5, 0.5, 0.5, 0.1], None, []], [4, 3, 0], 3, STEEP)
    assert kept == [[], [0, 1, 2], []]
    chances = [0.9**n for n in range(1, 9)]
    assert best_length(chances, 1, 0.0, FLAT) == 8
    lengths = [best_length(chances, 1, each, FLAT) for each in (0.1, 0.3, 0.5, 2.0)]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] > lengths[-1] == 0


def test_nodes_after_a_rejected_one_are_not_judged() -> None:
    model = AcceptanceModel()
    assert (model.chance(1, 0.95), model.chance(1, 0.1)) == (0.95, 0.1), "until more is known"
    bias = RequestBias(model)
    for _ in range(20):
        bias.learn(Tree.chain([1, 2, 3]), [0])
    assert model.chance(1, None) > 0.9 and model.chance(2, None) < 0.2
    _, second, third, *_ = model.surest()
    assert second == third < 0.2, "as the depth before, until more is known"
    mine = RequestBias(model)
    for _ in range(10):
        mine.learn(NODE, [])
    assert mine.chance(1, None) < model.chance(1, None) - 0.1, "it leans away from what others see"


def test_siblings_are_judged_together_and_each_drafter_of_a_name_apart() -> None:
    model = AcceptanceModel()
    tree = Tree([1, 2, 3], [-1, -1, 1], scores=[0.9, 0.3, 0.25])
    for _ in range(200):
        RequestBias(model).learn(tree, [1])
    assert model.chance(1, 0.9) < 0.1 and model.chance(1, 0.3) > 0.9
    assert model.chance(2, 0.9) < 0.1  # 0.25 of 0.3 was not accepted either
    model = AcceptanceModel()
    bias = RequestBias(model)
    for _ in range(50):
        bias.learn(Tree([1], [-1], scores=[0.5], drafter_ids=[0]), [0])
        bias.learn(Tree([1], [-1], scores=[0.5], drafter_ids=[1]), [])
    assert model.chance(1, 0.5, 0) > 0.9 and model.chance(1, 0.5, 1) < 0.1
    (sure,), (unsure,) = (bias.survival(Tree([1], [-1], scores=[0.5], drafter_ids=[n])) for n in (0, 1))
    assert sure > 0.9 and unsure < 0.1


def test_what_tokens_and_rows_are_worth_where_modes_are_mixed() -> None:
    costs = StepCosts(lambda groups: StepCostCurve([1, 2, 4, 8], [1.0, 1.2, 2.0, 3.0]))
    assert costs.value(None, 1) == pytest.approx((1.0, 1 / 3))
    assert costs.value(None, 2) == pytest.approx((0.6, 0.3))
    controller = SpeculationController(lambda groups: StepCostCurve([1], [float(groups or 8)]))
    few, more, all_of_them = (view(groups) for groups in (2, 3, None))
    assert controller.value([few, more]).token == 3.0, "the one with most groups decides"
    assert controller.value([few, all_of_them, more]).token == 8.0


def test_requests_of_one_drafter_share_what_they_learn() -> None:
    controller = SpeculationController(lambda groups: FLAT)
    settings = Speculation()
    first = controller.policy(settings, "suffix")
    before = controller.policy(settings, "suffix").survival(NODE)
    for _ in range(20):
        first.record(NODE, [])
    assert before is not None
    for name, learnt in (("suffix", True), ("head", False)):
        (chance,) = controller.policy(settings, name).survival(NODE) or ()
        assert (chance < before[0] / 2) == learnt
    assert controller.policy(Speculation(nodes=3), "suffix").plan(REQUEST, 1) == 3
    assert controller.policy(Speculation(drafter="off", nodes=3), "off").plan(REQUEST, 1) == 0


def test_a_curve_is_corrected_by_the_steps_that_run() -> None:
    curve = StepCostCurve([1, 4, 16], [1.0, 1.2, 4.0])
    for _ in range(100):
        curve.note(1, 2.0)
        curve.note(4, 7.0)
    assert curve.seconds(4) / curve.seconds(1) == pytest.approx(3.5, rel=0.01)
    assert curve.seconds(1) == pytest.approx(2.0, rel=0.01)
    assert curve.seconds(16) == pytest.approx(7.0 / 1.2 * 4.0, rel=0.01), "the nearest speaks for it"
    for _ in range(40):
        curve.note(1, 4.0)  # the machine is half as fast now: so it is with 4 rows
    assert curve.seconds(1) == pytest.approx(4.0, rel=0.01)
    assert curve.seconds(4) / curve.seconds(1) == pytest.approx(3.5, rel=0.15)
    for _ in range(4000):
        curve.note(1, 4.0)  # what runs no more is tried again
    assert curve.seconds(4) / curve.seconds(1) == pytest.approx(1.2, rel=0.1)


def test_one_slow_step_locks_nothing_out() -> None:
    curve = StepCostCurve([1, 4], [1.0, 1.2])
    for _ in range(20):
        curve.note(1, 1.0)
    curve.note(4, 2.4)  # it found cold caches
    for _ in range(20):
        curve.note(1, 1.0)
    assert curve.seconds(4) == pytest.approx(1.2, rel=0.02)
    curve = StepCostCurve([1, 4], [1.0, 1.2])
    for step in range(32):
        curve.note(1, 1000.0 if step == 16 else 1.0)
    assert curve.seconds(1) == pytest.approx(1.0, rel=0.05)


def test_steps_of_few_rows_make_others_neither_dear_nor_cheap() -> None:
    """Such a row count may not run for long then, and nothing would show that more rows are cheap."""
    curve = StepCostCurve([1, 2, 4], [1.0, 1.1, 1.3])
    for _ in range(16):
        curve.note(1, 1.0)
        curve.note(4, 1.3, plain=False)
    for seconds in (1.1, 1.1, 2.2, 2.2):  # others used the machine
        curve.note(2, seconds, plain=False)
    for _ in range(8):
        curve.note(1, 1.0)
    assert curve.seconds(4) == pytest.approx(1.3, rel=0.02) and curve.seconds(2) <= curve.seconds(4)
    curve = StepCostCurve([1, 2, 4], [1.0, 1.05, 1.3])
    for _ in range(16):
        curve.note(1, 1.0)
    for _ in range(4):
        curve.note(2, 0.8, plain=False)  # what asking takes was taken off, and was less this time
    for _ in range(8):
        curve.note(1, 1.0)
    assert curve.seconds(1) == pytest.approx(1.0, rel=0.01)
    assert curve.seconds(1) <= curve.seconds(2) <= curve.seconds(4)


def test_row_counts_that_take_turns_are_learnt() -> None:
    times = [1 + 0.1 * n for n in range(12)]
    curve = StepCostCurve(range(1, 13), times)
    for turn in range(2000):
        rows = 2 + 7 * turn % 11
        curve.note(1, 1.0)
        curve.note(rows, 1.4 * times[rows - 1], plain=False)
    assert 1.28 < curve.seconds(6) / times[5] < 1.42  # they fade a little


def test_delays_while_drafts_run_are_soon_forgotten() -> None:
    curve = StepCostCurve([1, 4], [1.0, 1.3])
    for _ in range(16):
        curve.note(1, 1.0)
    for seconds in (1.3, 1.3, 2.4, 2.4, 2.4):
        curve.note(4, seconds, plain=False)
    for _ in range(8):
        curve.note(1, 1.0)
    assert curve.seconds(4) < 1.9  # 2.1 if each counted as it was
    for _ in range(120):
        curve.note(1, 1.0)
    assert curve.seconds(4) < 1.6


def test_a_curve_grows_with_rows_whatever_noise_says() -> None:
    curve = StepCostCurve([1, 2, 4], [1.0, 0.5, 2.0])
    times = [curve.seconds(n) for n in (1, 2, 3, 4, 8, 1024, 4096)]
    assert times == sorted(times) and times[4] == pytest.approx(4.0)
    # what took longer than more rows was held up, and does not make those look dear
    held_up = StepCostCurve([1, 2, 4, 8], [1.0, 1.1, 5.0, 1.5])
    assert held_up.seconds(4) == 1.5 and held_up.seconds(2) == 1.1


def run(length: AdaptiveLength, accepted: int, curve: StepCostCurve) -> int:
    """A step of one request; how many nodes ran."""
    asked = length.plan(REQUEST, 1)
    tree = Tree.chain(list(range(asked)))
    nodes = nodes_that_pay([length.survival(tree)], [asked], 1, curve)[0]
    length.record(tree.only(nodes), list(range(min(accepted, len(nodes)))))
    return len(nodes)


def test_refused_drafts_stop_good_ones_run_to_the_end_and_slow_ones_are_hardly_asked() -> None:
    curve = StepCostCurve([1, 2, 128], [1.0, 1.3, 40.0])
    length, _ = policy(curve)
    late = [run(length, 0, curve) for _ in range(600)][-300:]
    assert 0 < sum(late) <= 5 and max(late) == 1
    slope = StepCostCurve([1, 2, 9, 128], [1.0, 1.15, 1.9, 30.0])
    length, _ = policy(FLAT)
    assert run(length, 8, slope) > 0 and [run(length, 8, slope) for _ in range(20)][-1] == 8
    assert [run(length, 0, slope) for _ in range(61)][-1] == 0
    assert max(run(length, 8, slope) for _ in range(300)) == 8
    length, costs = policy(FLAT)
    costs.drafted(DraftCall("drafter", 0.8, 1, 1))
    asked = []
    for _ in range(1000):
        asked.append(length.plan(REQUEST, 1))
        length.record(Tree.chain(list(range(asked[-1]))), [])
    assert 0 < sum(asked[-500:]) <= 4


def test_what_is_left_of_a_tree_keeps_its_shape_and_how_far_it_holds_a_text() -> None:
    tree = Tree([5, 6, 7, 8], [-1, -1, 1, 2], np.arange(8, dtype=np.float32).reshape(4, 2), [0.9, 0.8, 0.7, 0.6])
    left = tree.only([1, 2])
    assert (list(left.tokens), list(left.parents)) == ([6, 7], [-1, 0])
    assert left.probs is not None and left.probs.tolist() == [[2.0, 3.0], [4.0, 5.0]]
    assert left.scores == [0.8, 0.7] and tree.only([0, 1, 2, 3]) is tree and tree.only([]).tokens == []
    texts: list[list[int]] = [[], [9], [5, 7], [6, 7, 4], [6, 7]]
    assert [tree.match(text) for text in texts] == [[], [], [0], [1, 2], [1, 2]]


@pytest.fixture(scope="module")
def model(tiny_dense: Path) -> Model:
    return load_model(tiny_dense)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of measurements, all of which are kept."""
    monkeypatch.setattr(cost_curve, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(cost_curve, "WORTH_KEEPING", 0.0)
    return tmp_path / "step_times"


def test_what_is_kept_is_taken_for_the_same_model_only(model: Model, kept: Path) -> None:
    rows, seconds = step_seconds(model, None, "tiny")
    assert rows == cost_curve.ROWS and len(seconds) == len(rows) and min(seconds) > 0
    (path,) = kept.iterdir()
    path.write_text(json.dumps({"rows": [1, 2], "seconds": [0.5, 0.6]}), "utf-8")
    assert step_seconds(model, None, "tiny") == ((1, 2), (0.5, 0.6))
    assert step_seconds(model, None, "another")[0] == cost_curve.ROWS and len(list(kept.iterdir())) == 2


def test_other_kernels_are_measured_anew(
    model: Model, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another level or source; not another name of the same level."""
    monkeypatch.delenv("FASTSLOW_KERNELS", raising=False)
    path = cost_curve._path(model, None, "tiny")
    monkeypatch.setenv("FASTSLOW_KERNELS", "auto")
    assert cost_curve._path(model, None, "tiny") == path
    monkeypatch.setenv("FASTSLOW_KERNELS", "plain")
    assert cost_curve._path(model, None, "tiny") != path
    monkeypatch.delenv("FASTSLOW_KERNELS")
    (tmp_path / "new.cpp").write_text("")
    monkeypatch.setattr(kernel_cache, "SOURCES", tmp_path)
    assert cost_curve._path(model, None, "tiny") != path


def test_steps_are_measured_little_by_little(model: Model, kept: Path) -> None:
    """Three counts of rows at once, however slow they are: one alone says nothing of what a row costs."""
    most = cost_curve.ROWS[-1]
    assert step_seconds(model, None, "tiny", 1e-9)[0] == (1, 2, 3, most)
    rows, seconds = step_seconds(model, None, "tiny", 1e-9)
    assert rows == (1, 2, 3, 4, most) and seconds[4] >= seconds[3]
    assert step_seconds(model, None, "tiny")[0] == cost_curve.ROWS


def test_a_file_that_does_not_fit_is_measured_anew(model: Model, kept: Path) -> None:
    step_seconds(model, None, "tiny")
    (path,) = kept.iterdir()
    pairs = ["[2], [1]", "[1, 1], [1, 1]", "[1], [-1]", "[1, 2], [1]", "[1], [Infinity]"]
    pairs += ["[Infinity], [1]", "[1, 2], [1, NaN]"]
    texts = ['{"rows": ' + pair.replace("], [", '], "seconds": [') + "}" for pair in pairs]
    for text in ("", "[]", "{}", "[" * 100_000, *texts):
        path.write_text(text, "utf-8")
        assert step_seconds(model, None, "tiny")[0] == cost_curve.ROWS


def test_what_was_measured_on_a_busy_machine_is_not_kept(
    model: Model, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for others, files in ((0.4, 0), (0.02, 1)):
        monkeypatch.setattr(Watch, "others", lambda self, others=others: others)
        assert step_seconds(model, None, "tiny")[0] == cost_curve.ROWS and len(list(kept.glob("*"))) == files


def test_a_short_context_measures_what_fits(tmp_path: Path, kept: Path) -> None:
    model = load_model(write_dense(tmp_path / "short", max_position_embeddings=66))
    assert step_seconds(model, None, "short")[0] == (1, 2)


def test_a_measured_step_folds_what_was_accepted_before_and_none_of_its_own_rows(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As steps with drafts do. More rows than fit beside the state are read as text is."""
    steps, forward = list[tuple[int, RunningRows]](), Decoder.forward

    def noted(model: Decoder, rows: Rows, *given: Any) -> ModelOutput:
        assert rows.running is not None
        steps.append((len(rows.tokens), rows.running[0]))
        return forward(model, rows, *given)

    monkeypatch.setattr(Decoder, "forward", noted)
    model = load(tmp_path / "model", CONFIG, table())
    rows, _ = step_seconds(model, None, "recurrent")
    measured = steps[1:]  # after the context
    steps.clear()
    params = SamplingParams(max_tokens=60, ignore_eos=True)
    Bench(model, {"random": lambda kv: RandomDraft()}).run([Ask((3, 5, 4), params, "random", 9)])
    assert len(steps) > 9 and {n for n, _ in measured} == {*rows}
    for n, r in [*measured, *steps[1:]]:
        assert r.folds == len(r.before) > 0 and len(r.at) == n
        assert r.stable == max(0, n - cost_curve.DRAFTED) and len(r.before) + n - r.stable <= UNFOLDED
        assert not {*r.before.tolist()} & {*r.at[r.stable :].tolist()}
    assert {n: len(r.before) for n, r in measured}[8] == 4
