"""Two data-parallel ranks: attention by rows. Bits, bytes, and rows that stay where they belong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import texts
import torch
from checkpoints import write_moge
from parallel_tools import ranks

from fastslow.engine.backends.loader import load_model
from fastslow.engine.model.tensors import parameters
from fastslow.engine.parallel.model import ParallelModel
from fastslow.engine.types import Rows
from fastslow.tools.plan.shards import ShardPlan

ENDS = ("embedding reduce-scatter", "outputs all-gather", "logits gather", "features gather")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_moge(tmp_path_factory.mktemp("moge"), mlp_only_layers=[1], vocab=97)


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[ParallelModel]:
    """Attention by rows, two ranks; experts by their inner width."""
    with ranks(folder, "dp=2") as model:
        yield model


def dp_logits(
    model: ParallelModel, tokens: list[int], dp_rank: int, sizes: list[int]
) -> torch.Tensor:
    size = 64
    kv = texts.storage(model, 2 * size)
    slots, parts, start = np.arange(dp_rank * size, dp_rank * size + len(tokens)), [], 0
    for count in sizes:
        rows = Rows.of([texts.chunk(tokens, start, start + count, slots)])
        parts.append(model.forward(rows, kv).logits)
        start += count
    return torch.cat(parts)


def test_logits_are_those_of_one_rank_bit_for_bit_in_any_chunk_on_any_dp_rank(
    model: ParallelModel, folder: Path
) -> None:
    tokens = texts.tokens_of(60)
    plain = texts.logits(load_model(folder, "float64", "cpu"), tokens)
    whole = dp_logits(model, tokens, 0, [60])
    assert (whole - plain).abs().max() < 1e-4
    for dp_rank, sizes in ((1, [60]), (0, [1] * 60), (1, [7, 33, 1, 19])):
        assert torch.equal(whole, dp_logits(model, tokens, dp_rank, sizes)), (dp_rank, sizes)


def test_requests_of_both_dp_ranks_share_a_step(model: ParallelModel) -> None:
    kv = texts.storage(model, 128)
    texts_of = [texts.tokens_of(n, n) for n in (9, 30, 1)]
    firsts = (70, 0, 64)
    rows = Rows.of(
        [texts.chunk(t, 0, len(t), np.arange(f, f + len(t))) for t, f in zip(texts_of, firsts)]
    )
    out = model.forward(rows, kv, (2, 0))
    assert out.features is not None and out.features.shape == (40, 128)
    rows.outputs, rows.feature_rows = rows.outputs[[12, 0]], rows.feature_rows[[39, 0, 12, 13]]
    rows.only_best = rows.only_best[:2]
    some = model.forward(rows, kv, (2, 0))
    assert some.features is not None and torch.equal(some.logits, out.logits[[12, 0]])
    assert torch.equal(some.features, out.features[[39, 0, 12, 13]])
    rows.outputs, rows.only_best = rows.outputs[:0], rows.only_best[:0]
    none = model.forward(rows, kv, (2, 0))
    assert none.features is not None and torch.equal(none.features, some.features)
    rows.feature_rows = rows.feature_rows[:0]
    none = model.forward(rows, kv, (2, 0))
    assert none.features is not None and none.features.shape == (0, 128)
    rows.outputs, rows.only_best = np.arange(40), np.zeros(40, dtype=np.bool_)
    answers = out.logits.split([9, 30, 1])
    rows.only_best[::3] = True
    few = model.forward(rows, kv).best
    rows.only_best[:] = True
    best = model.forward(rows, kv).best
    assert best.tolist() == out.logits.argmax(-1).tolist()
    assert few[::3].tolist() == best[::3].tolist() and (few[1::3] == -1).all()
    for tokens, first, logits in zip(texts_of, firsts, answers):
        assert torch.equal(logits, dp_logits(model, tokens, first // 64, [len(tokens)]))


def test_a_request_stays_on_one_dp_rank(model: ParallelModel) -> None:
    kv, tokens = texts.storage(model, 128), texts.tokens_of(20)
    with pytest.raises(ValueError, match="request 0 of the step has slots on data-parallel ranks"):
        model.forward(Rows.of([texts.chunk(tokens, 0, 20, np.arange(50, 70))]), kv)
    with pytest.raises(ValueError, match="cannot move between data-parallel ranks"):
        kv.move(np.array([3]), np.array([100]))
    dp_logits(model, tokens, 0, [20])  # nothing else was disturbed


def test_bytes_held_read_and_sent_are_those_of_the_plan(model: ParallelModel) -> None:
    plan = ShardPlan.of(model.config, model.parallel, torch.float32)
    before = model.report()
    assert [f.weights for f in before] == [share.weights for share in plan.shares]
    assert [f.read for f in before] == [share.elements * 4 for share in plan.shares]
    assert sum(f.read for f in before) < 1.6 * 4 * parameters(model.config)
    kv = texts.storage(model, 128)
    segments = [(9, 70), (30, 0), (1, 64)]
    rows = Rows.of(
        [texts.chunk(texts.tokens_of(n), 0, n, np.arange(f, f + n)) for n, f in segments]
    )
    model.forward(rows, kv, (2, 0))
    padded = plan.padded([30, 10])
    assert padded == 60
    after = model.report(kv)
    rows.only_best[:] = True
    assert model.forward(rows, kv).logits.shape == (0, 97)
    best = sum(f.sent["logits gather"] for f in model.report())
    assert best - sum(f.sent["logits gather"] for f in after) == 24 * (2 - 1) * 40
    for name, expected in plan.layer_traffic(padded).items():
        sent = sum(a.sent[name] - b.sent[name] for a, b in zip(after, before))
        assert sent == expected * model.config.layers, name
    ends = {name: sum(a.sent[name] - b.sent[name] for a, b in zip(after, before)) for name in ENDS}
    assert ends == {
        "embedding reduce-scatter": 64 * 4 * (2 - 1) * padded,
        "outputs all-gather": 64 * 4 * 2 * (2 - 1) * 30,
        "logits gather": 4 * 49 * (2 - 1) * 40,  # half of 97 token ids
        "features gather": 4 * 128 * (2 - 1) * 30,
    }
    per_row = 2 * 64 * 4 * (1 + 2 - 2)
    assert sum(plan.layer_traffic(padded).values()) == per_row * padded
    assert after[0].kv == after[1].kv == 64 * plan.shares[0].kv_per_token
