"""Rows laid out as runs over blocks and a tail: each row sees what it should, once."""

import numpy as np
import pytest
from layout_cases import BLOCK, CASES, text
from pairs import pairwise

from fastslow.engine.backends.accelerator import kv as layout_file
from fastslow.engine.backends.accelerator.kv import AttentionLayout, BlockTables, attention_layout
from fastslow.engine.backends.accelerator.recorded import SIZES, fill_runs, padded_size
from fastslow.engine.rows import Rows
from fastslow.engine.types import Ints


def seen_slots(rows: Rows, layout: AttentionLayout) -> dict[int, list[int]]:
    """The slots that each row of the step sees, out of the layout alone."""
    found: dict[int, list[int]] = {}

    def add(runs: BlockTables, places: Ints, causal: bool) -> None:
        first = 0
        for last, keys, table in zip(runs.query_ends, runs.seq_lens, runs.tables, strict=True):
            lying = text(table.tolist(), keys) if keys else np.empty(0, dtype=np.int64)
            for i in range(first, last):
                cut = len(lying) - (last - 1 - i) if causal else len(lying)
                low = max(cut - runs.window, 0) if runs.window else 0
                found.setdefault(int(places[i]), []).extend(lying[low:cut].tolist())
            first = last
        assert first == len(places)

    if layout.chains is not None:
        every = np.arange(len(rows.tokens)) if layout.rows is None else layout.rows.numpy()
        add(layout.chains, every, True)
    tail = layout.tail
    if tail is None:
        return found
    if tail.runs is not None:
        add(tail.runs, tail.rows.numpy(), False)
    for row, blind in zip(tail.rows, tail.blind):
        if blind:
            found[int(row)] = []
    width = tail.gather.shape[1]
    for i, place in enumerate(tail.places):
        assert tail.gather.flatten()[place] == i
        line, at = divmod(int(place), width)
        shown = tail.slots[line][~tail.hidden[line, at]]
        found.setdefault(int(tail.rows[i]), []).extend(shown.tolist())
    return found


def should_see(rows: Rows, window: int = 0) -> dict[int, list[int]]:
    wanted = {}
    for b, context in enumerate(rows.contexts):
        start = int(rows.starts[b])
        for i in range(start, int(rows.starts[b + 1])):
            path, row = [], i - start
            while row >= 0:
                path.append(int(rows.slots[start + row]))
                row = int(rows.parents[start + row])
            wanted[i] = sorted([*context.tolist(), *path[::-1]][-window:])
    return wanted


@pytest.mark.parametrize(
    ("name", "window", "most", "merged", "chained"),
    pairwise(list(CASES), (0, 1, 3, 7, 8, 9, 15, 100), (1, 3, 4, 16), (True, False), (True, False)),
)
def test_each_row_sees_its_own(name: str, window: int, most: int, merged: bool, chained: bool) -> None:
    """All of its text or what its window has; and no run reads a block that none of its rows sees a key of."""
    rows = Rows.of(CASES[name])
    layout = attention_layout(rows, BLOCK, most, merged, window, chained)
    found = {row: sorted(slots) for row, slots in seen_slots(rows, layout).items()}
    assert found == {row: sorted(slots) for row, slots in should_see(rows, window).items()}
    assert chained or layout.chains is None
    if layout.chains is not None:
        assert max(np.diff([0, *layout.chains.query_ends])) <= most
        within = window + most - 1 + BLOCK - 1
        assert not window or all(keys <= within for keys in layout.chains.seq_lens)
    if not merged and layout.tail is not None:
        assert layout.tail.runs is None


def test_long_chains_in_the_tail_are_cut_and_shorter_ones_are_not_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_file, "LINE", 5)
    rows = Rows.of(CASES["a first chunk"])
    layout = attention_layout(rows, BLOCK, 4, True, 6, False)
    assert layout.tail is not None and layout.tail.gather.shape == (5, 5)
    assert layout.tail.runs is not None, "what every row of a line sees is read in blocks"
    assert {row: sorted(x) for row, x in seen_slots(rows, layout).items()} == {
        row: sorted(x) for row, x in should_see(rows, 6).items()
    }
    for name in ("a first chunk", "one row each", "a chunk over borders"):
        layout = attention_layout(Rows.of(CASES[name]), BLOCK, 16, True)
        assert layout.rows is None and layout.tail is None, name
    tail = attention_layout(Rows.of(CASES["a tree"]), BLOCK, 16, True).tail
    assert tail is not None and tail.rows.tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("most", [1, 16])
def test_padded_sizes_have_room_for_all_that_is_added(most: int) -> None:
    for runs in range(1, 40):
        for rows in range(runs, runs * most + 1):
            size = padded_size(runs, rows, most)
            if size is None and rows > SIZES[-2]:
                continue  # near the largest there may be no room
            assert size is not None, (runs, rows)
            wider, larger = size
            assert wider >= runs and larger >= rows and wider - runs <= larger - rows <= most * (wider - runs)


def test_added_runs_belong_to_nobody() -> None:
    runs = BlockTables([4, 5], [130, 7], np.array([[2, 3], [5, 0]]))
    full = fill_runs(runs, (4, 24), 3, spare=9 * 128)
    assert full.query_ends == [4, 5, 15, 24] and full.seq_lens == [130, 7, 10, 9]
    assert full.tables.tolist() == [[2, 3, 0], [5, 0, 0], [9, 0, 0], [9, 0, 0]]
    same = fill_runs(runs, (2, 5), 2, spare=9 * 128)
    assert (same.query_ends, same.seq_lens) == (runs.query_ends, runs.seq_lens)
