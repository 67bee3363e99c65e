"""A row's bits do not depend on the rows beside it, nor on how its text was cut up."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import numpy as np
import pytest
import texts
import torch
from kernel_tools import wanted

from fastslow.engine.backends.cpu.formats import QUANTIZATIONS
from fastslow.engine.backends.loader import load_model
from fastslow.engine.kv.storage import KVStorage
from fastslow.engine.model.base import Model
from fastslow.engine.types import Rows, Segment

DTYPES = ["float32", "bfloat16", "float64", "int8", "int4", "int8 KV"]


def load(kind: str, form: str, factory: pytest.TempPathFactory) -> Model:
    """A model in a dtype or, where there are kernels for it, a quantization."""
    folder = factory.mktemp(kind)
    if kind == "moge":
        checkpoints.write_moge(folder, mlp_only_layers=[1])
    else:
        checkpoints.write_dense(folder, attention_bias=True)
    if form not in (*QUANTIZATIONS, "int8 KV"):
        return load_model(folder, form)
    if not wanted():
        pytest.skip("the CPU kernels are not available")
    if form == "int8 KV":
        return load_model(folder, "bfloat16", kv_dtype="int8")
    return load_model(folder, quantization=form)


# One by one at the beginning, and where rows 128 and 256 are passed.
ALONE = [*[1] * 4, 116, *[1] * 16, 112, *[1] * 16, 26]


@pytest.fixture(scope="module", params=DTYPES)
def moge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load("moge", request.param, tmp_path_factory)


@pytest.fixture(scope="module", params=DTYPES)
def dense(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load("dense", request.param, tmp_path_factory)


@pytest.fixture(scope="module", params=[(k, d) for k in ("moge", "dense") for d in DTYPES])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    kind, form = request.param
    return load(kind, form, tmp_path_factory)


@pytest.mark.parametrize("groups", [None, 0, 2])
def test_one_chunk_pieces_and_one_by_one_agree(model: Model, groups: int | None) -> None:
    count = sum(ALONE)  # over two attention blocks and two cuts of a prompt chunk
    tokens = texts.tokens_of(count)
    whole = texts.logits(model, tokens, groups=groups)
    assert torch.equal(whole, texts.logits(model, tokens, ALONE, groups=groups))
    assert torch.equal(whole, texts.logits(model, tokens, [3, 126, 1, 5, 155], groups=groups))


@pytest.mark.parametrize("rows", [1, 15, 17, 40])
def test_few_rows_late_in_a_text(tmp_path: Path, rows: int) -> None:
    """Where several threads share one text's keys, a step has the most phases; in all its sizes."""
    model = load_model(checkpoints.write_moge(tmp_path), "bfloat16")
    tokens = texts.tokens_of(600)
    whole = texts.logits(model, tokens, [560, 40])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            pieces = [560, *([rows] * (40 // rows)), *([40 % rows] if 40 % rows else [])]
            assert torch.equal(whole, texts.logits(model, tokens, pieces)), threads
    finally:
        torch.set_num_threads(before)


def test_slots_do_not_matter(model: Model) -> None:
    tokens = texts.tokens_of(150)
    scattered = np.random.default_rng(1).permutation(400)[:150]
    whole = texts.logits(model, tokens)
    assert torch.equal(whole, texts.logits(model, tokens, slots=scattered))
    assert torch.equal(whole, texts.logits(model, tokens, [70, 1, 1, 78], slots=scattered))
    assert torch.equal(whole, texts.logits(model, tokens, [149, 1], slots=np.arange(9, 159)))


@pytest.mark.parametrize("context", [1, 30, 126, 250])
def test_tree_rows_equal_plain_decoding(model: Model, context: int) -> None:
    """Every node equals its path decoded token by token, beside requests of other lengths."""
    parents = [-1, 0, 0, 1, 2, 2, 5, 0, 3, 6]
    depths = [0, 1, 1, 2, 2, 2, 3, 1, 3, 4]
    text, nodes = texts.tokens_of(context, seed=2), texts.tokens_of(len(parents), seed=3)
    others = [texts.tokens_of(n, seed=n) for n in (1, 3, 60, 131, 20)]
    places = np.random.default_rng(4).permutation(1000)
    kv = texts.storage(model, 1000)
    slots, free = places[:context], places[300:]
    model.forward(Rows.of([texts.chunk(text, 0, context, slots)]), kv)
    tree = Segment(
        nodes,
        [context + d for d in depths],
        parents,
        free[: len(nodes)],
        slots,
        None,
        range(len(nodes)),
    )
    segments, free = [], free[len(nodes) :]
    for i, other in enumerate(others):
        segments.append(texts.chunk(other, 0, len(other), free[: len(other)], [None, 0, 2][i % 3]))
        free = free[len(other) :]
    segments.insert(2, tree)
    out = model.forward(Rows.of(segments), kv).logits
    start = len(others[0]) + len(others[1])
    for node in range(len(nodes)):
        path = [node]
        while parents[path[-1]] >= 0:
            path.append(parents[path[-1]])
        alone = texts.logits(
            model, text + [nodes[i] for i in reversed(path)], [context] + [1] * len(path)
        )
        assert torch.equal(out[start + node], alone[-1]), node


def test_neighbours_in_other_modes_do_not_matter(moge: Model) -> None:
    """Decoding steps of many requests with mixed groups equal each request's own."""
    modes = [None, 0, 1, 2, 3, None, 0, 4, None]
    lengths = [4, 40, 17, 131, 9, 128, 6, 129, 260]
    kv = texts.storage(moge, sum(lengths))
    stops = np.cumsum(lengths)
    all_tokens = [texts.tokens_of(n, seed=n) for n in lengths]
    all_slots = [np.arange(stop - n, stop) for n, stop in zip(lengths, stops, strict=True)]
    requests = list(zip(all_tokens, all_slots, modes, lengths, strict=True))
    for tokens, slots, groups, n in requests:
        moge.forward(Rows.of([texts.chunk(tokens, 0, n - 3, slots, groups)]), kv)
    for back in (3, 2, 1):
        step = [
            texts.chunk(tokens, n - back, n - back + 1, slots, groups)
            for tokens, slots, groups, n in requests
        ]
        out = moge.forward(Rows.of(step), kv).logits
        for row, (tokens, _, groups, n) in zip(out, requests, strict=True):
            assert torch.equal(row, texts.logits(moge, tokens, groups=groups)[n - back])


def test_a_neighbours_nan_stays_its_own(dense: Model) -> None:
    tokens = texts.tokens_of(10)
    kv: KVStorage = texts.storage(dense, 300)
    rows = kv.read(np.arange(10, 300))
    kv.write(np.arange(10, 300), *(torch.full_like(side, torch.nan) for side in rows))
    sick, well = np.arange(20, 28), np.arange(10)
    step = Rows.of(
        [
            Segment([5], [7], [-1], sick[-1:], sick[:-1], None, [0]),
            texts.chunk(tokens, 0, 9, well),
            Segment([5], [7], [-1], sick[-1:] + 50, sick[:-1] + 50, None, [0]),
        ]
    )
    out = dense.forward(step, kv).logits
    assert out[0].isnan().all() and out[-1].isnan().all()
    assert torch.equal(out[1:-1], texts.logits(dense, tokens)[:9])
    one = dense.forward(Rows.of([texts.chunk(tokens, 9, 10, well)]), kv).logits
    assert torch.equal(one, texts.logits(dense, tokens)[9:])


def test_each_request_keeps_its_own_max_len(tmp_path: Path) -> None:
    scaling = {"rope_type": "dynamic", "factor": 4.0}
    folder = checkpoints.write_dense(tmp_path, rope_scaling=scaling, max_position_embeddings=16)
    model = load_model(folder)
    assert model.config.context == 64
    tokens = texts.tokens_of(12)
    kv = texts.storage(model, 36)
    max_lens = (0, 24, 64)
    rows = Rows.of(
        [
            texts.chunk(tokens, 0, 12, np.arange(12 * i, 12 * i + 12), max_len=max_len)
            for i, max_len in enumerate(max_lens)
        ]
    )
    out = model.forward(rows, kv).logits.split(12)
    for got, max_len in zip(out, max_lens, strict=True):
        assert torch.equal(got, texts.logits(model, tokens, [5, 1, 6], max_len=max_len))
    assert not torch.equal(out[0], out[1]) and not torch.equal(out[1], out[2])
