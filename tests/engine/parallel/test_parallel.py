"""Several ranks say what one says: every drafter, every family, attention by heads or by rows; and bytes, and rows that
stay where they belong."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pangu_v2_tools
import pytest
import texts
import torch
from checkpoints import FAMILIES, write_family, write_moge
from engine_tools import Setting
from exact_tools import SETTINGS, check, mixed, shorter
from parallel_tools import bench_on, check_memory, counted, ranks, traffic

from fastslow.engine.backends.loader import load_model
from fastslow.engine.parallel.model import ParallelModel
from fastslow.engine.parallel.sharding import RankShard
from fastslow.engine.rows import Rows

SIZES = (30, *[1] * 4, 6)
MIXTURES = ("qwen3_moe", "gpt_oss", "pangu_v2")
FLAT = [name for name in FAMILIES if name not in MIXTURES]
MIXES = ("ep=4", "tp=4", "dp=4", "ep=2,tp=2", "dp=2,tp=2", "dp=2,ep=2")
FIELDS: dict[str, dict[str, Any]] = {"qwen3_moe": {"norm_topk_prob": False}}


def test_every_drafter_in_a_mixed_batch_under_pressure(tmp_path: Path) -> None:
    """Experts by groups, attention by heads, which share a KV head."""
    with bench_on(tmp_path, "ep=2") as bench:
        sums = check(bench, shorter(mixed(bench), 10), Setting(pages=22, prompt_rows=11), warm=True)
    assert 0 < sums["accepted"] < sums["drafted"]
    assert sums["preempted"] > 0 and sums["cached"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tp=2", "dp=2", *MIXES])
def test_every_setting_says_what_one_rank_says(tmp_path: Path, layout: str) -> None:
    with bench_on(tmp_path, layout, num_attention_heads=4, num_key_value_heads=2) as bench:
        for name in ("prefix hit", "few pages, small chunks"):
            setting, warm = SETTINGS[name]
            if "few" in name:  # of every data-parallel rank
                assert isinstance(bench.model, ParallelModel)
                setting = Setting(26 * bench.model.storage.dp_ranks, prompt_rows=5)
            sums = check(bench, mixed(bench), setting, warm)
            assert 0 < sums["accepted"] < sums["drafted"], name
            assert sums["cached"] > 0 or not warm


def rows_padded(model: ParallelModel, most: int) -> int:
    """Rows of a step with padding: every rank keeps as many as the one with most needs."""
    return -(-most // RankShard.all(model.config, model.parallel)[0].attention) * model.parallel.ranks


@pytest.mark.slow
@pytest.mark.parametrize("layout", MIXES)
def test_bytes_sent_are_those_of_the_guide(tiny_moge: Path, layout: str) -> None:
    with ranks(tiny_moge, layout, "bfloat16") as model:
        kv, sent = texts.storage(model, 32 * model.storage.dp_ranks), counted(model)
        rows = Rows.of([texts.chunk(texts.tokens_of(13), 0, 13, np.arange(13))])
        rows.outputs, rows.only_best = rows.outputs[:0], rows.only_best[:0]
        model.forward(rows, kv)
        check_memory(model, kv, torch.bfloat16)
        padded = rows_padded(model, 13)
        sent["all reduce-scatter"] -= 64 * 2 * (model.parallel.ranks - 1) * padded  # the embedding
        for name, expected in traffic(model, padded, 2).items():
            assert sent[name] == expected * len(model.config.layers), name


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("gpt_oss", "ep=2"),
        ("qwen3_moe", "tp=2"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (*product(MIXTURES, ("ep=2,tp=2", "dp=2,ep=2")), *product(FLAT, ["tp=4"]))
        ),
    ],
)
def test_a_family(tmp_path: Path, family: str, layout: str) -> None:
    if family == "pangu_v2":
        made = pangu_v2_tools.write_moe(tmp_path, num_experts=12, v_channels=8)
    else:
        made = write_family(tmp_path, family, **FIELDS.get(family, {}))
    plain, tokens = load_model(made, "float64", "cpu"), texts.tokens_of(sum(SIZES))
    with ranks(made, layout) as model:
        # all on the last copy of attention
        slots = np.arange(len(tokens)) + (model.storage.dp_ranks - 1) * len(tokens)
        for wanted in (None, 1, 2) if family in MIXTURES else (None,):
            found = texts.logits(model, tokens, SIZES, groups=wanted, slots=slots).double()
            expected = texts.logits(plain, tokens, groups=wanted).log_softmax(-1)
            torch.testing.assert_close(found.log_softmax(-1), expected, atol=1e-4, rtol=0)


# One model after the other: this one stays until the file ends.
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_moge(tmp_path_factory.mktemp("moge"), mlp_only_layers=[1], vocab=97)


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[ParallelModel]:
    """Attention by rows, two ranks; experts by their inner width."""
    with ranks(folder, "dp=2") as model:
        yield model


def dp_logits(model: ParallelModel, tokens: list[int], dp_rank: int, sizes: list[int]) -> torch.Tensor:
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
    rows = Rows.of([texts.chunk(t, 0, len(t), np.arange(f, f + len(t))) for t, f in zip(texts_of, firsts)])
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


def test_bytes_held_and_sent_are_those_of_the_guide(model: ParallelModel) -> None:
    kv = texts.storage(model, 128)
    check_memory(model, kv, torch.float32)
    segments = [(9, 70), (30, 0), (1, 64)]
    rows = Rows.of([texts.chunk(texts.tokens_of(n), 0, n, np.arange(f, f + n)) for n, f in segments])
    padded, sent = rows_padded(model, 30), counted(model)
    assert padded == 60
    model.forward(rows, kv, (2, 0))
    layers, inside = len(model.config.layers), traffic(model, padded, 4)
    ends = {  # the embedding, features and logits of wanted rows, half of 97 token ids
        "all reduce-scatter": 64 * 4 * (2 - 1) * padded,
        "all all-gather": 64 * 4 * 2 * (2 - 1) * 30,
        "all gather": 4 * 49 * (2 - 1) * 40 + 4 * 128 * (2 - 1) * 30,
    }
    for name, bytes_sent in sent.items():
        assert bytes_sent == inside.get(name, 0) * layers + ends.get(name, 0), name
    assert sum(inside.values()) == 2 * 64 * 4 * (1 + 2 - 2) * padded
    sent.clear()
    rows.only_best[:] = True
    assert model.forward(rows, kv).logits.shape == (0, 97)
    assert sent["all gather"] == 24 * (2 - 1) * 40
