"""A head that is trained to see prompts is shown them, and nothing else of an answer changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_tools import Ask, Bench, Setting, finish
from head_tools import PROMPTS, RUNNERS, View, tiny_runner, tiny_weights

from fastslow.draft.base import BaseDrafter
from fastslow.draft.head.config import read_ends
from fastslow.draft.head.draft import MAX_WAITING, HeadDraft
from fastslow.draft.head.growing import Growth
from fastslow.draft.head.head import TrainedHead
from fastslow.draft.head.runner import HeadRunner, TorchRunner
from fastslow.draft.head.state import FinishedTexts
from fastslow.draft.several import AdaptiveDrafter, FallbackDrafter
from fastslow.engine.backends.loader import load_model
from fastslow.engine.model.base import Model
from fastslow.engine.params import SamplingParams
from fastslow.engine.types import AcceptResult, Features, MarginalValue, RequestView
from fastslow.policies.speculation.selection import AdaptiveSelection
from fastslow.policies.speculation.tuning import TUNING
from fastslow.tools.forward import forward_texts
from fastslow.tools.train_head.answers import TrainText
from fastslow.tools.train_head.batches import BatchCut, batch_of
from fastslow.tools.train_head.features import look
from fastslow.tools.train_head.unroll import unroll

SHOWN = 16


@pytest.fixture(scope="module")
def model(target: Path) -> Model:
    return load_model(target, "float32", "cpu", progress=False)


class Watch(HeadDraft):
    """Keeps the rows of text that it was shown, and those that were verified."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.shown: dict[int, dict[int, torch.Tensor]] = {}
        self.verified: dict[int, dict[int, torch.Tensor]] = {}

    def commit(self, batch: Sequence[RequestView], result: AcceptResult, features: Features | None) -> None:
        assert features is not None
        parts = torch.as_tensor(features).split([len(path) + 1 for path in result.accepted_nodes])
        for request, tokens, part in zip(batch, result.tokens, parts):
            first = len(request.tokens) - len(tokens) - 1
            own = self.verified.setdefault(request.id, {})
            own |= {first + n: row.clone() for n, row in enumerate(part)}
        super().commit(batch, result, features)

    def read(self, batch: Sequence[RequestView], rows: Sequence[range], features: Features) -> None:
        assert len(features) == sum(map(len, rows))
        places = [(r.id, place) for r, some in zip(batch, rows) for place in some]
        for (number, place), row in zip(places, torch.as_tensor(features)):
            assert place not in self.shown.setdefault(number, {}), "shown twice"
            self.shown[number][place] = row.clone()
        super().read(batch, rows, features)


@pytest.mark.parametrize("setting", [Setting(), Setting(pages=26, max_running=4, prompt_rows=7)], ids=str)
def test_a_head_is_shown_the_last_rows_of_the_prompt_and_they_are_right(
    model: Model, target: Path, setting: Setting
) -> None:
    one = Watch(tiny_runner(target, RUNNERS[-1], prompt=SHOWN))
    two = Watch(tiny_runner(target, "torch", (1,), prompt=5))
    none = Watch(tiny_runner(target))
    own = Bench(model, {"one": lambda kv: one, "two": lambda kv: two, "none": lambda kv: none})
    names, params = ("one", "two", "off", "none"), SamplingParams(max_tokens=24, ignore_eos=True)
    some = [Ask(p, params, names[n % 4]) for n, p in enumerate((*PROMPTS, PROMPTS[3]))]
    core = own.core(setting)
    requests = [own.request(n, ask) for n, ask in enumerate(some)]
    finish(core, requests[:4])
    finish(core, requests[4:])
    assert setting.pages < 99 or requests[5].spec_stats.cached == 36  # of the same prompt
    assert not none.shown and not (one._states or two._states)
    for watch, most, layers, numbers in ((one, SHOWN, (0, 1), (0, 4)), (two, 5, (1,), (1, 5))):
        assert set(watch.shown) <= set(numbers) == set(watch.verified)
        for number in numbers:
            ask, rows = some[number], watch.shown.get(number, {})
            last = len(ask.tokens) - 1
            cached = requests[number].spec_stats.cached
            assert set(rows) >= set(range(max(cached, last - most), last))
            if not requests[number].spec_stats.preemptions:
                assert set(rows) == set(range(max(cached, last - most), last))
            whole = forward_texts(model, [requests[number].tokens], layers).features
            assert whole is not None
            for place, row in (rows | watch.verified[number]).items():
                assert torch.equal(row, whole[place])
            assert set(watch.verified[number]) == set(range(last, len(whole) - 1))


class Manual:
    """A drafter that gets a text by hand, whose features are those of a table."""

    def __init__(self, runner: HeadRunner, tokens: Sequence[int], width: int = 3) -> None:
        self.drafter = HeadDraft(runner, Growth(width))
        self.view = View(7, tokens)
        self.table = torch.randn(600, 2 * runner.config.hidden, generator=torch.manual_seed(5))

    def read(self, *runs: range) -> None:
        for some in runs:
            (found,) = self.drafter.wants([self.view], [some])
            if found:
                self.drafter.read([self.view], [found], self.table[found.start : found.stop])

    def say(self, *tokens: int) -> None:
        first = len(self.view.tokens) - 1
        self.view.tokens += tokens
        rows = self.table[first : first + len(tokens)]
        self.drafter.commit([self.view], AcceptResult([[*range(len(tokens) - 1)]], [[*tokens]]), rows)

    def draft(self) -> tuple[list[int], list[float]]:
        tree = self.drafter.propose([self.view], [8])[0]
        return list(tree.tokens), list(tree.scores or ())


@pytest.mark.parametrize("kind", RUNNERS)
def test_drafts_do_not_depend_on_the_chunks_of_a_prompt(target: Path, kind: str) -> None:
    found = []
    for cuts in ([0, 39], [0, 25, 39], [0, 24, 25, 26, 38, 39], [*range(40)]):
        manual = Manual(tiny_runner(target, kind, prompt=SHOWN), PROMPTS[3])
        manual.read(*map(range, cuts[:-1], cuts[1:]))
        assert not manual.drafter.propose([manual.view], [8])[0].tokens, "no row to draft from yet"
        for said in ((4, 5), (6,)):
            manual.say(*said)
            found.append(manual.draft())
    assert len(found[0][0]) == 8 and found[0] != found[1]
    for n, (tokens, scores) in enumerate(found):
        assert tokens == found[n % 2][0] and scores == pytest.approx(found[n % 2][1], rel=1e-4)
        assert kind == "torch" or scores == found[n % 2][1], "to the bit"
    blind = Manual(tiny_runner(target, kind), PROMPTS[3])
    blind.read(range(39))
    blind.say(4, 5)
    assert blind.draft() != found[0], "a prompt that is seen changes the draft"


@pytest.mark.parametrize("kind", RUNNERS)
def test_a_prompt_is_not_forgotten(target: Path, kind: str) -> None:
    """Neither where nobody drafts for long, nor where rows are missing after it."""
    for missing in (0, 3):
        drafts = []
        for shown in (SHOWN, 0):
            manual = Manual(tiny_runner(target, kind, prompt=shown, window=1024), PROMPTS[3])
            manual.read(range(39))
            text = manual.drafter._states[7].text if shown else None
            manual.view.tokens += [5] * missing  # nobody gathered features
            for n in range(2 * MAX_WAITING):
                manual.say(5 + n % 3)
                assert len(manual.drafter._states[7].after) <= MAX_WAITING
            state = manual.drafter._states[7]
            assert text is None or state.text == text
            drafts.append(manual.draft())
            assert state.position == len(manual.view.tokens) - 1
        assert drafts[0] != drafts[1]


@pytest.mark.parametrize("kind", RUNNERS)
@pytest.mark.parametrize("width", [1, 3])
def test_who_has_missed_rows_does_not_draft_from_old_ones(target: Path, kind: str, width: int) -> None:
    manual = Manual(tiny_runner(target, kind, prompt=SHOWN), PROMPTS[1], width)
    manual.read(range(20))
    manual.say(5)
    assert manual.draft()[0]
    manual.view.tokens += [6, 7]
    assert not manual.draft()[0]
    manual.read(range(len(manual.view.tokens) - 1))  # computed again, after it was preempted
    assert not manual.draft()[0]
    manual.say(4)
    assert manual.draft()[0]
    manual.drafter.release([7])
    assert not manual.drafter._states


@pytest.mark.parametrize("kind", RUNNERS)
@pytest.mark.parametrize("ended", [True, False])
def test_a_text_that_continues_another_takes_its_rows_over(target: Path, kind: str, ended: bool) -> None:
    """They lie in the prefix cache, so the target shows them to nobody again."""
    manual = Manual(tiny_runner(target, kind, prompt=64), PROMPTS[3])
    manual.read(range(39))
    manual.say(4, 5)
    manual.say(6)
    drafted = manual.draft()
    before = manual.view
    text = [*before.tokens, 9, 10, 3, 4]
    if ended:
        manual.drafter.release([7])
    found = {}
    for number, cached in ((8, 40), (9, 17), (10, 46)):
        manual.view = View(number, text)
        manual.read(range(cached, 46))
        manual.say(8)
        found[cached] = manual.draft()
    cold = Manual(tiny_runner(target, kind, prompt=64), text)
    cold.read(range(46))
    cold.say(8)
    expected = cold.draft()
    for cached in (40, 17):
        assert found[cached][0] == expected[0]
        assert found[cached][1] == pytest.approx(expected[1], rel=1e-4)
        assert kind == "torch" or found[cached] == expected, "to the bit"
    other = next(token for token in text if token != text[5])
    manual.view = View(11, [*text[:5], other, *text[6:]])
    manual.read(range(40, 46))
    manual.say(8)
    assert manual.draft() != expected
    if not ended:  # whose rows are still its own
        manual.view = before
        assert manual.draft() == drafted


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("key", [None, "b"])
def test_rows_of_forgotten_texts_and_of_other_keys_are_not_taken_over(
    target: Path, key: str | None, ended: bool
) -> None:
    manual = Manual(tiny_runner(target, "torch", prompt=64), PROMPTS[3])
    manual.read(range(39))
    manual.say(4, 5)
    manual.drafter.release([7] if ended else [])
    if key is None:
        manual.drafter.forget()
        manual.view.shared = False  # as the engine has it
    manual.view = View(8, [*manual.view.tokens, 9], memory_key=key)
    manual.read(range(40, 41))
    assert manual.drafter._states[8].first == 40, "no row from before"
    manual.drafter.release([7, 8])
    kept = [state.tokens for state in manual.drafter._finished]
    assert kept[-1] == manual.view.tokens and len(kept) == (1 if key is None else 2)


def test_only_some_rows_of_ended_texts_are_finished(target: Path) -> None:
    runner = tiny_runner(target, "torch", prompt=64)
    assert isinstance(runner, TorchRunner)
    manual = Manual(runner, PROMPTS[1])
    manual.drafter._finished = FinishedTexts(50)
    for number in range(7, 12):
        manual.view = View(number, [number, *PROMPTS[1]])
        manual.read(range(21))
        manual.say(5)
        manual.drafter.release([number])
        assert not manual.drafter._states and len(runner._texts) == min(number - 6, 2)
    assert [state.tokens[0] for state in manual.drafter._finished] == [10, 11]


@pytest.mark.parametrize("window", [512, 6])
def test_drafting_computes_what_training_computed(target: Path, model: Model, window: int) -> None:
    """A text with a prompt, in the rows and places of a batch, and as a drafter sees it."""
    config, weights = tiny_weights(target)
    ends = read_ends(target)
    head = TrainedHead(replace(config, prompt=SHOWN, window=window), weights, ends)
    tokens = [*PROMPTS[3], 5, 7, 6, 9, 4, 8]
    (seen,) = look(model, [TrainText(tokens, 40)], (0, 1))
    batch = batch_of([BatchCut(seen, SHOWN)], config.hidden)

    def embedded(ids: torch.Tensor) -> torch.Tensor:
        return ends.embedding[ids].float()

    steps = [x[0] for x in unroll(head._layer, batch, embedded, 3)]
    runner = TorchRunner(head)
    manual = Manual(runner, PROMPTS[3])
    manual.table = seen.features.float()
    manual.read(range(30), range(30, 39))
    manual.say(5, 7)  # rows 39 and 40: 0 and 1 of the batch
    manual.draft()
    text = manual.drafter._states[7].text
    for depth, token in enumerate((6, 9)):
        tip = runner._texts[text].tip
        assert tip is not None and torch.allclose(tip, steps[depth][1 + depth], atol=1e-4), depth
        runner.advance([text], [token])


class Looks(BaseDrafter):
    """Wants the last rows that are read; notes what it is shown."""

    def __init__(self, features: tuple[int, ...], most: int) -> None:
        self.features, self.most = features, most
        self.seen: list[tuple[list[range], Features]] = []

    def wants(self, batch: Sequence[Any], rows: Sequence[range]) -> list[range]:
        return [some[max(0, len(some) - self.most) :] for some in rows]

    def read(self, batch: Sequence[Any], rows: Sequence[range], features: Features) -> None:
        self.seen.append((list(rows), features))


def test_of_several_that_look_each_gets_its_layers() -> None:
    one, two = Looks((2,), 2), Looks((0, 1), 3)
    blind: Any = BaseDrafter()
    blind.features = (5,)
    drafters: list[Any] = [blind, one, two]
    best = AdaptiveDrafter(drafters, AdaptiveSelection(3))
    best.features = (5,)
    rows, wanted = [range(4, 9), range(0), range(1, 2)], [range(6, 9), range(0), range(1, 2)]
    batch: Any = [View(n, [3] * 10) for n in range(3)]
    assert best.wants(batch, rows) == wanted and list(best.features) == [0, 1, 2, 5]
    features = torch.arange(4.0)[:, None] * 10 + torch.tensor([0.0, 1.0, 2.0, 5.0])
    best.read(batch, wanted, features)
    assert one.seen[0][1].tolist() == [[2.0], [12.0], [22.0], [32.0]]
    assert two.seen[0][1][:, 1].tolist() == [1.0, 11.0, 21.0, 31.0]
    alone = FallbackDrafter(blind)
    assert alone.wants(batch, rows) == [range(0)] * 3 and alone.features == (5,)


@pytest.mark.parametrize(("price", "found"), [(0.5, range(3, 5)), (2.0, range(0))])
def test_where_rows_are_dear_nobody_who_is_not_asked_looks(price: float, found: range) -> None:
    batch: Any = [View(0, [3] * 6)]
    value = MarginalValue(1.0, price * TUNING.max_row_price)
    selection = AdaptiveSelection(2, lambda batch: value)
    drafters: list[Any] = [BaseDrafter(), Looks((2,), 2)]
    best = AdaptiveDrafter(drafters, selection)
    best.features = ()
    assert [*best.wants(batch, [range(5)])[0]] == [*found]
    assert best.features == ((2,) if found else ())
