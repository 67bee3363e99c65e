from collections.abc import Callable, Iterable, Sequence

import pytest
from fake_engine import metrics
from tune_tools import sample

from fastslow import Speculation
from fastslow.engine.host.progress import silent
from fastslow.tools.prompts import Conversation
from fastslow.tools.tune.candidates import PLAIN, grid, label
from fastslow.tools.tune.runner import TuneRunner
from fastslow.tools.tune.sample import (
    Cell,
    Sample,
    accepted_share,
    rate,
    ratio,
    sample_of,
    seconds_per_step,
    step_cost,
    tokens_per_step,
)
from fastslow.tools.tune.search import SpeculationSearch

PARTS: list[list[Conversation]] = [[[{"role": "user", "content": str(i)}]] for i in range(12)]
CANDIDATES = grid([Speculation(drafter="ngram"), Speculation(drafter="self")], [1, 2, 3, 4, 6, 8])


class Machine(TuneRunner):
    """Runs nothing: a step takes its time, and speed lies in the tokens that it gives.

    speed: of a setting on a part, in times plain. slowness: of the machine at a run; 1 = usual.
    """

    def __init__(
        self, speed: Callable[[Speculation, int], float], slowness: Callable[[int], float] = lambda run: 1.0
    ) -> None:
        self._speed, self._slowness = speed, slowness
        self.now, self.runs = 0.0, 0

    def warm_up(self, cells: Iterable[Cell], prompt: Conversation) -> None:
        self.now += 0.3 * len(list(cells))

    def run(self, cell: Cell, prompts: Sequence[Conversation], part: int, turn: int) -> Sample:
        seconds = 2.0 * self._slowness(self.runs)
        self.runs += 1
        self.now += seconds
        forwards = round(1000 / self._speed(cell.setting, part))
        return sample(part, turn, tokens=1000, seconds=seconds * forwards / 1000, forwards=forwards)

    def time(self) -> float:
        return self.now


def search_on(machine: Machine, seconds: float = 400.0) -> SpeculationSearch:
    search = SpeculationSearch(CANDIDATES, 1, "deep")
    search.run(machine, PARTS, seconds, silent, machine.time)
    return search


def speeds(setting: Speculation, part: int) -> float:
    """The best is self · 3; prompts differ, and each likes another length."""
    if setting == PLAIN:
        return 1.0
    base = 1.6 if setting.drafter == "self" else 1.4
    nodes = setting.nodes
    assert nodes is not None
    return base - 0.08 * abs(nodes - 3) + 0.3 * ((part + nodes) % 4 == 0)


def test_the_fastest_is_found_even_where_it_is_plain_decoding() -> None:
    search = search_on(Machine(speeds))
    assert label(search.best) in ("self · 3", "self · 4") and 1.5 < search.score(search.best) < 1.8
    usual = search_on(Machine(speeds)).best

    def slowness(run: int) -> float:
        return (1 + run / 20) * (40 if run % 17 == 5 else 1)

    shaky = search_on(Machine(speeds, slowness), 40_000.0).best
    assert {label(usual), label(shaky)} <= {"self · 3", "self · 4"}
    search = search_on(Machine(lambda setting, part: 1.0 if setting == PLAIN else 0.9))
    assert search.best == PLAIN and search.score(PLAIN) == 1.0


@pytest.mark.parametrize("seconds", [20, 31.4, 60, 77, 400, 5000])
def test_a_search_keeps_its_time(seconds: float, logged: list[str]) -> None:
    """And says before what fits into it: the lengths first that win most often."""
    machine = Machine(speeds)
    search = search_on(machine, seconds)
    assert 0.8 * seconds < machine.now <= seconds or len(search.samples[PLAIN]) > 100
    first = next(line for line in logged if "fit into the time" in line)
    tried = [setting for setting in CANDIDATES if search.samples[setting]]
    assert first.startswith(f"{len(tried)} of 12 settings fit")
    assert len(tried) == 12 or 1 not in {s.nodes for s in tried}
    assert search.carried, "so that there is a verdict"


def test_no_time_for_a_verdict_is_said_at_once() -> None:
    machine = Machine(speeds)
    with pytest.raises(ValueError, match=r"minutes leave 8 s .* a verdict on one setting takes 13 s"):
        search_on(machine, 10.0)
    assert machine.runs == 1


def test_one_disturbed_run_carries_no_verdict_and_fixes_no_length() -> None:
    fixed = Speculation(drafter="ngram", nodes=4)
    free = fixed.model_copy(update={"nodes": None})
    search = SpeculationSearch([fixed, free], 1, "deep")
    search.samples[PLAIN] = [sample(n) for n in range(4)]
    search.samples[free] = [sample(n, seconds=8.0) for n in range(4)]
    search.samples[fixed] = [sample(0, seconds=2.0)]
    assert search.fastest_draft == free and search.best == free and search.carried
    search.samples[fixed] = [sample(n, seconds=s) for n, s in enumerate((7.0, 7.1, 7.05, 6.9))]
    assert search.fastest_draft == fixed and search.carried, "four runs do"
    search.tried = [fixed]
    search.samples[fixed] = [sample(n, seconds=s) for n, s in enumerate((5.0, 50.0, 5.0))]
    assert search.best == fixed and not search.carried, "one of three was disturbed"
    for times, carried in (((9.0, 10.0, 11.5, 7.0), False), ((9.9, 10.0, 10.1, 10.0), True)):
        search.samples[fixed] = [sample(n, seconds=s) for n, s in enumerate(times)]
        assert search.best == PLAIN and search.carried == carried


def test_disturbed_runs_carry_no_verdict_and_count_where_there_are_no_others() -> None:
    fixed = Speculation(drafter="ngram", nodes=4)
    search = SpeculationSearch([fixed], 1, "deep")
    search.samples[PLAIN] = [sample(n) for n in range(10)]
    search.samples[fixed] = [sample(n, seconds=5.0, others=0.3) for n in range(10)]
    assert search.best == fixed and search.score(fixed) == 2.0 and not search.carried
    search.samples[fixed] += [sample(n, seconds=8.0, others=0.01) for n in range(3)]
    assert search.carried and search.score(fixed) == 1.25
    search.samples[PLAIN][2] = sample(2, others=0.3)
    assert not search.carried, "nor where plain decoding was disturbed"


def test_of_equals_the_adaptive_length_wins() -> None:
    fixed = Speculation(drafter="ngram", nodes=4)
    free = fixed.model_copy(update={"nodes": None})
    for speed, best in ((1.49, free), (1.40, fixed)):
        search = SpeculationSearch([fixed, free], 1, "deep")
        table = {PLAIN: 1.0, fixed: 1.5, free: speed}
        machine = Machine(lambda setting, part, table=table: table[setting])  # type: ignore[misc]
        search.run(machine, PARTS, 100.0, silent, machine.time)
        assert search.best == best


def test_figures_of_a_sample_and_gain_over_cost() -> None:
    first = metrics(tokens=11, steps=11, ttft=1.0, tpot=0.1, drafted=0, accepted=0)
    second = metrics(tokens=21, steps=6, ttft=1.5, tpot=0.1, drafted=20, accepted=15)
    made = sample_of([[first, second], [first]], part=3, turn=1)
    assert (made.part, made.turn) == (3, 1) and made.tokens == 10 + 20 + 10
    assert made.seconds == pytest.approx(2.5 + 1.0)  # 1.0 to 3.5, then 1.0 to 2.0
    assert made.forwards == 10 + 10 and tokens_per_step([made]) == pytest.approx(43 / 28)
    assert accepted_share([made]) == 0.75 and seconds_per_step([made]) == pytest.approx(3.5 / 20)
    assert accepted_share([sample(0)]) is None
    plain = [sample(i) for i in range(3)]
    drafted = [sample(i, forwards=50, seconds=6.0) for i in range(3)]
    assert ratio(drafted, plain) == pytest.approx(10 / 6) and step_cost(drafted, plain) == pytest.approx(1.2)
    assert rate(drafted) == pytest.approx(100 / 6) and ratio(drafted[:1], plain) == pytest.approx(10 / 6)
    assert ratio(drafted, []) != ratio(drafted, [])  # nan
