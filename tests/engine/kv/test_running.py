"""Running states: where snapshots are taken and found, and what drafts cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from engine_tools import Ask, Bench, OracleDraft, answer
from head_tools import View
from hybrid_model import CONFIG, LAYOUT, table
from layer_fuzz import load

from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import OwnKV
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.kv.integrity import IntegrityError
from fastslow.engine.kv.page_file import PageFile
from fastslow.engine.kv.state import running
from fastslow.engine.kv.state.layout import UNFOLDED
from fastslow.engine.params import SamplingParams


def hybrid(pages: int, places: int, snapshots: int, **fields: Any) -> KVCache:
    kind: dict[str, Any] = {"layout": LAYOUT, "dtype": torch.float32, "device": "cpu", "page_size": 4}
    return KVCache(**kind, pages=pages, places=places, snapshots=snapshots, **fields)


def test_a_prompt_begins_with_the_deepest_snapshot() -> None:
    """Of its pages: that is where another text of the same beginning ended, or a multiple of 256 tokens."""
    cache, text = hybrid(200, 1, 3), [*range(300)]
    with pytest.raises(
        ValueError, match=r"^0 prefixes are pinned already, and of 1 snapshots of running states at most half"
    ):
        hybrid(200, 2, 1).pins.check(4, 10)

    def read(request: int, tokens: list[int], chunk: int = 300) -> tuple[int, list[tuple[int, int]]]:
        cached = valid = cache.open(request, tokens, None, len(tokens) - 1)
        assert cache.reserve(request, len(tokens))
        found = []
        while valid < len(tokens):
            stop = min(valid + chunk, len(tokens))
            rows = cache.running(request, range(valid, stop), stop - (stop == len(tokens)))
            assert rows is not None and rows.place == 0
            found += [(valid - len(rows.before) + n, to) for n, to in rows.snapshots]
            cache.advance(request, stop, tokens)
            valid = stop
            cache.check_integrity()
        cache.close(request)
        return cached, found

    assert read(0, text) == (0, [(256, 2), (292, 3)])
    assert read(1, text[:298], 100) == (292, [])
    assert read(2, [*text[:280], 7, 8, *range(900, 910)]) == (256, [(280, 1), (284, 2)]), "256 made room: it was passed"
    assert read(3, text[:291]) == (280, [(288, 3)])
    assert cache.pins.add(1, text, None, 10) == 288
    assert read(4, [5] * 20) == (0, [(12, 2)])
    assert read(5, text[:280]) == (0, [(272, 1)]), "the least recently used made room, not the pinned one"
    assert read(6, text) == (288, [(292, 1)])
    assert read(7, text[:282]) == (0, [(272, 1), (280, 2)]), "none is cheap: none each 256 tokens"


def test_texts_of_one_beginning_share_it_once_they_parted() -> None:
    """A second text that leaves the first marks the place for a third. Of a long text the latest snapshots stay."""
    cache = hybrid(2000, 1, 40)
    story = [*range(4000)]
    for request, (tokens, found) in enumerate((
        (story, 0), ([*story[:1002], 1, 2, 3, 4, 5], 0), ([*story[:1002], 9, 9, 9, 9], 1000),
        (story, 3992), (story[:3600], 3584), (story[:2000], 1000),
    )):  # fmt: skip
        assert cache.open(request, tokens, None, len(tokens) - 1) == found
        assert cache.reserve(request, len(tokens))
        for stop in (*range(found + 500, len(tokens), 500), len(tokens)):
            cache.running(request, range(cache.valid(request), stop), stop - (stop == len(tokens)))
            cache.advance(request, stop, tokens)
            cache.check_integrity()
        cache.close(request)
    places = cache._ranks[0].places
    assert places is not None and len(places.snapshots) < 20


def test_drafts_copy_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state is written where a request begins and at snapshots: at most one for each page of a text. Of drafted rows
    what each of them adds is moved, where a branch was accepted past another."""
    begun, moved, kept = [0], [0], [0]
    states, plan = running.RunningStates, running.StatePlaces.rows
    clear, copy, move = states.clear, states.copy, states.move

    def counted(count: list[int], size: Callable[..., int], call: Callable[..., Any]) -> Callable[..., Any]:
        def made(*given: Any) -> Any:
            found = call(*given)
            count[0] += size(found, *given)
            return found

        return made

    state, request = hybrid(4, 1, 1).storage.running.bytes  # type: ignore[union-attr]
    row = (request - state) // UNFOLDED
    monkeypatch.setattr(states, "clear", counted(begun, lambda *_: state, clear))
    monkeypatch.setattr(states, "copy", counted(begun, lambda *_: state, copy))
    monkeypatch.setattr(states, "move", counted(moved, lambda _, __, place, src, dst: len(src) * row, move))
    passed = counted(kept, lambda found, *_: state * len(found.snapshots), plan)
    monkeypatch.setattr(running.StatePlaces, "rows", passed)
    model = load(tmp_path, CONFIG, table())
    bench = Bench(model, {"tree": lambda kv: OracleDraft(known, lambda place: place % 3 == 2, forked=True)})
    params, random = SamplingParams(max_tokens=40, ignore_eos=True), Random(1)
    asks = [Ask(tuple(random.choices(range(3, 32), k=30)), params, "tree", 9) for _ in range(4)]
    known = {n: bench.alone(ask).tokens for n, ask in enumerate(asks)}
    begun[0] = kept[0] = 0
    asked = bench.run(asks)
    spec = [request.spec_stats for request in asked]
    accepted, answered = sum(one.accepted for one in spec), sum(len(answer(one)) for one in asked)
    assert sum(one.drafted for one in spec) > 200 and accepted > 20
    assert begun[0] == state * (len(spec) + sum(one.preemptions for one in spec))
    assert 0 < moved[0] <= accepted * row and moved[0] % row == 0
    assert 0 < kept[0] <= state * ((30 * len(spec) + answered) // 4 + len(spec))


def test_a_draft_models_states_are_those_of_plain_decoding(tmp_path: Path) -> None:
    """The target drafts for itself, so all that it drafts is right; with few places, so that texts are read again."""
    model = load(tmp_path, CONFIG, table())
    random, own = Random(2), OwnKV(hybrid(80, 3, 3))
    bench = Bench(model, {"own": lambda kv: ModelDraft(model, own)})
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    asks = [Ask(tuple(random.choices(range(3, 32), k=9)), params, "own", nodes) for nodes in (9, 4, 1, 9, 3, 2)]
    for request, ask in zip(bench.run(asks), asks, strict=True):
        spec = request.spec_stats
        assert answer(request) == answer(bench.alone(ask)) and spec.accepted == spec.drafted > 10, ask
    drafter, text = ModelDraft(model, own), View(99, random.choices(range(3, 32), k=9))
    once, twice = (drafter.propose([text], [4])[0].tokens for _ in range(2))
    assert len(once) == 4 and once == twice, "the last token is not folded in: it runs again"


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("^of 2 places of running states requests have", lambda kv: kv._ranks[0].places.free.append(0)),
        ("; snapshots are at", lambda kv: kv._ranks[0].places.spare.pop()),
        ("has a snapshot, but is not published$", lambda kv: kv._ranks[0].places.snapshots.update({9: kv._ranks[0].places.spare.pop()})),
        ("^request 0: 9 rows are folded in, 8 are valid$", lambda kv: setattr(kv._tables[0], "folded", 9)),
    ],
)  # fmt: skip
def test_seeded_faults_are_seen(said: str, fault: Callable[[Any], object]) -> None:
    cache = hybrid(10, 2, 3)
    cache.open(0, [1] * 9, None, 8)
    assert cache.reserve(0, 9) and cache.running(0, range(8), 8)
    cache.advance(0, 8, [1] * 9)
    cache.check_integrity()
    fault(cache)
    with pytest.raises(IntegrityError, match=said):
        cache.check_integrity()


def test_what_cannot_have_running_states_says_so(tmp_path: Any) -> None:
    cache = hybrid(8, 1, 1)
    with pytest.raises(ValueError, match="^kv_spill keeps no running states, and layer 0 has one: leave it out$"):
        PageFile(cache.storage, 4, 1 << 20, tmp_path)
    cache.open(0, [1] * 9, None, 8)
    assert cache.reserve(0, 16) and cache.room(0) == 16
    cache.open(1, [1] * 9, None, 8)
    assert not cache.reserve(1, 8), "there is one place"
    assert cache.running(0, range(8), 8) is not None
    with pytest.raises(ValueError, match=r"^rows of positions 7\.\.9 run where 8 rows are folded in"):
        cache.running(0, range(7, 10), 7)
    with pytest.raises(ValueError, match=r"at most 48 may not be folded in yet$"):
        cache.running(0, range(8, 57), 8)
    cache.close(0)
    assert cache.reserve(1, 8)
