"""Recorded steps: what may not happen in one, and what must be renewed in front of each replay."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import texts
import torch
from npu_tools import CHIPS, simulated

from fastslow.engine.backends.accelerator import recorded
from fastslow.engine.backends.accelerator.decoder import PagedDecoder
from fastslow.engine.backends.accelerator.kv import BLOCK
from fastslow.engine.backends.loader import load_model
from fastslow.engine.rows import Rows

TOKENS = texts.tokens_of(40)
DECODING = [30, *[1] * 10]


def load(folder: Path, device: str) -> Any:
    return load_model(folder, "float32", device, progress=False)


@pytest.fixture(scope="module")
def expected(tiny_moge: Path) -> torch.Tensor:
    return texts.logits(load(tiny_moge, "cpu"), TOKENS)


@pytest.fixture(params=CHIPS)
def model(request: pytest.FixtureRequest, tiny_moge: Path) -> Iterator[PagedDecoder]:
    with simulated(request.param):
        yield load(tiny_moge, "npu")


def test_replays_see_the_new_lengths(model: PagedDecoder, expected: torch.Tensor) -> None:
    found = texts.logits(model, TOKENS, DECODING)
    assert model.recorder.recorded == 1 and model.recorder.replays == 9
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


def test_recordings_end_with_their_cache(model: PagedDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "MOST_RECORDED", 1)  # at a time
    for times in (1, 2):
        texts.logits(model, TOKENS, DECODING)  # on a new cache
        assert model.recorder.recorded == times
    assert model.recorder.kept == [], "the caches are gone"


def decode(model: PagedDecoder, kv: Any, rows: int, times: int) -> None:
    """Steps with a row for each of some texts."""
    slots = np.arange(0, rows * BLOCK, BLOCK)
    for _ in range(times):
        model.forward(Rows.of([texts.chunk(TOKENS, 0, 1, slots[i : i + 1]) for i in range(rows)]), kv)


def test_beyond_the_most_the_least_recently_used_one_makes_room(
    model: PagedDecoder, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    """As many are kept as are made, up to the limit; what is used stays."""
    monkeypatch.setattr(recorded, "MOST_RECORDED", 2)
    kv = texts.storage(model, 16 * BLOCK)
    recorder = model.recorder

    def kept() -> list[int]:
        return [len(x.step.tokens) for x in recorder.kept]

    for rows, wanted in ((1, [1]), (2, [1, 2]), (1, [2, 1]), (4, [1, 4]), (8, [4, 8])):
        decode(model, kv, rows, 2)
        assert kept() == wanted
    assert recorder.recorded == 4 and len(recorder.kept) == 2
    decode(model, kv, 1, 3)
    assert kept() == [4, 8], "what lost its place must come twice as often"
    decode(model, kv, 1, 1)
    assert kept() == [8, 1] and recorder.recorded == 5
    assert len([line for line in logged if "makes room" in line]) == 1


def test_recordings_take_bounded_memory(model: PagedDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    kv = texts.storage(model, 16 * BLOCK)
    for rows in (1, 2, 4):
        decode(model, kv, rows, 2)
    held = [x.nbytes for x in model.recorder.kept]
    assert len(held) == 3 and held[2] > 4 * 96 * 4, "the logits count"
    monkeypatch.setattr(recorded, "MOST_BYTES", sum(held))
    decode(model, kv, 8, 2)
    kept = model.recorder.kept
    assert len(kept) < 4 and len(kept[-1].step.tokens) == 8 and sum(x.nbytes for x in kept) <= sum(held)


def test_features_of_a_replay_stay_when_the_next_one_runs(model: PagedDecoder) -> None:
    kv = texts.storage(model, 40)
    slots = np.arange(40)
    kept = []
    for place in range(6):
        out = model.forward(Rows.of([texts.chunk(TOKENS, place, place + 1, slots)]), kv, (0, 2))
        assert out.features is not None
        kept.append((out.features, out.features.clone(), out.logits, out.logits.clone()))
    assert model.recorder.replays == 5 and all(torch.equal(a, b) and torch.equal(c, d) for a, b, c, d in kept)
    whole = Rows.of([texts.chunk(TOKENS, 0, 6, slots)])  # unrecorded
    again = PagedDecoder(model.weights).forward(whole, texts.storage(model, 40), (0, 2)).features
    assert again is not None
    torch.testing.assert_close(torch.cat([k[0] for k in kept]), again, atol=1e-4, rtol=1e-4)


def test_rows_that_only_fill_up_run_no_expert() -> None:
    """They belong to no request, and experts that they ran would be read for nothing."""
    filled = recorded.fill_rows(Rows.of([texts.chunk(TOKENS, 0, 3, np.arange(3))]), 8, spare=512)
    assert filled.groups.tolist() == [-1] * 3 + [0] * 5
    assert filled.slots.tolist() == [0, 1, 2, 512, 513, 514, 515, 516]
