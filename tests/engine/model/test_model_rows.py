"""A row's bits do not depend on the rows beside it, nor on how its text was cut up: every family in every format; and
the kernels against plain torch in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import texts
import torch
from checkpoints import FAMILIES, write_dense, write_family, write_moge
from family_tools import load
from kernel_tools import compiled, wanted
from pairs import pairwise
from pangu_v2_tools import write_moe
from safetensors.torch import load_file, save_file

from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.loader import load_model
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.base import Model
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.rows import Rows, Segment

OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "wide window": ("mistral", {"sliding_window": 133}),
    "one kv head": ("mistral", {"num_key_value_heads": 1, "sliding_window": 21}),
    "odd head": ("qwen3", {"head_dim": 36, "num_attention_heads": 6}),
    "wide head": ("qwen3", {"head_dim": 80, "num_attention_heads": 6}),
    "one wide kv head": ("llama", {"head_dim": 64, "num_attention_heads": 5, "num_key_value_heads": 1}),
    "not normed": ("qwen3_moe", {"norm_topk_prob": False, "decoder_sparse_step": 2}),
    "long windows": ("gpt_oss", {"sliding_window": 150, "num_local_experts": 40}),
}
KINDS: dict[str, Callable[..., Path]] = {
    "moge": partial(write_moge, mlp_only_layers=[1]),
    "dense": partial(write_dense, attention_bias=True),
    **{family: partial(write_family, family=family) for family in FAMILIES},
    **{name: partial(write_family, family=f, **fields) for name, (f, fields) in OTHERS.items()},
    "pangu v2": partial(write_moe, v_channels=12),
    "many sinks": partial(write_moe, v_channels=12, param_sink_number=300),
}
KERNELS = ("float32", "bfloat16", "int8", "int4", "int8 KV")
TORCH = ("torch float32", "torch bfloat16", "torch float64")
COUNTS = (0, 1, 2, 3)  # of groups or experts: which of `counts` the text itself runs
CONTEXTS = (1, 8, 126, 250)
CASES = pairwise(list(KINDS), KERNELS if wanted() else TORCH, CONTEXTS, COUNTS)
# Plain torch is slow: once each kind that is not only another size.
PLAIN = ["moge", "dense", "qwen2", "smollm3", "qwen3_moe", "gpt_oss"]
PLAIN += ["wide window", "not normed", "long windows", "pangu v2", "many sinks"]
CASES += [(kind, TORCH[i % 3], CONTEXTS[i % 4], COUNTS[i // 3 % 4]) for i, kind in enumerate(PLAIN)]
PARENTS = [-1, 0, 0, 1, 2, 2, 5, 0, 3, 6]
DEPTHS = [0, 1, 1, 2, 2, 2, 3, 1, 3, 4]
LENGTHS = (1, 131, 60, 40, 20)  # of the requests beside a tree
# One by one at the beginning, and where rows 128 and 256 are passed.
ALONE = [*[1] * 3, 122, *[1] * 6, 122, *[1] * 6, 21]


def made(folder: Path, kind: str, form: str) -> Model:
    KINDS[kind](folder)
    if form.startswith("torch"):
        return load(folder, False, form.removeprefix("torch "))
    options: dict[str, Any] = {"dtype": form}
    if form.startswith("int"):
        options = {"kv_dtype": "int8", "dtype": "bfloat16"}
        options = options if form == "int8 KV" else {"quantization": form}
    model = load_model(folder, progress=False, **options)
    assert isinstance(model, CpuDecoder)
    return model


def counts(model: Model) -> list[int | None]:
    """Numbers of groups or experts that requests may run; None: all."""
    if not model.config.chosen:
        return [None]
    routed = model.config.routed
    return [None, 2, 1, 3] if routed and isinstance(routed.router, Router) else [None, 0, 2, 1]


@pytest.mark.parametrize(("kind", "form", "context", "count"), CASES)
def test_a_row_is_the_same_among_any(tmp_path: Path, kind: str, form: str, context: int, count: int) -> None:
    model = made(tmp_path, kind, form)
    own = counts(model)[count % len(counts(model))]
    _check_cuts(model, own)
    _check_tree(model, context, own)


def _check_cuts(model: Model, groups: int | None) -> None:
    """Over two attention blocks and two cuts of a prompt chunk."""
    tokens = texts.tokens_of(sum(ALONE))
    whole = texts.logits(model, tokens, groups=groups)
    assert torch.equal(whole, texts.logits(model, tokens, ALONE, groups=groups))
    slots = np.random.default_rng(1).permutation(400)[: len(tokens)]
    pieces = [3, 126, 1, 5, len(tokens) - 135]
    assert torch.equal(whole, texts.logits(model, tokens, pieces, groups=groups, slots=slots))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        pieces = [257, 1, len(tokens) - 258]
        assert torch.equal(whole, texts.logits(model, tokens, pieces, groups=groups))
    finally:
        torch.set_num_threads(before)


def _check_tree(model: Model, context: int, groups: int | None) -> None:
    """Every node equals its path decoded token by token. Beside it prompts and decoding steps run in other
    modes, and are not changed by it either."""
    text, nodes = texts.tokens_of(context, seed=2), texts.tokens_of(len(PARENTS), seed=3)
    places = np.random.default_rng(4).permutation(1000)
    kv, slots, free = texts.storage(model, 1000), places[:context], places[300:]
    model.forward(Rows.of([texts.chunk(text, 0, context, slots, groups)]), kv)
    depths, modes = [context + depth for depth in DEPTHS], counts(model)
    places, free = free[: len(nodes)], free[len(nodes) :]
    segments = [Segment(nodes, depths, PARENTS, places, slots, groups, range(len(nodes)))]
    wanted = []
    for i, length in enumerate(LENGTHS):
        other, mode = texts.tokens_of(length, seed=i), modes[i % len(modes)]
        places, free, known = free[:length], free[length:], (length - 1) * (i % 2)
        if known:
            model.forward(Rows.of([texts.chunk(other, 0, known, places, mode)]), kv)
        segments.append(texts.chunk(other, known, length, places, mode))
        wanted.append(texts.logits(model, other, groups=mode)[known:])
    segments = [*segments[1:3], segments[0], *segments[3:]]
    found = list(model.forward(Rows.of(segments), kv).logits.split([len(s.tokens) for s in segments]))
    tree = found.pop(2)
    assert torch.equal(torch.cat(found), torch.cat(wanted))
    for leaf in {*range(len(nodes))} - {*PARENTS}:  # their paths hold every node
        path = [leaf]
        while PARENTS[path[0]] >= 0:
            path.insert(0, PARENTS[path[0]])
        line = text + [nodes[i] for i in path]
        alone = texts.logits(model, line, [context] + [1] * len(path), groups)
        assert torch.equal(tree[path], alone[context:]), leaf


@compiled
@pytest.mark.parametrize(("kind", "form"), pairwise(["moge", "gpt_oss", "wide head"], KERNELS))
def test_many_texts_go_on_as_each_alone(tmp_path: Path, kind: str, form: str) -> None:
    """Twelve texts, a row each, on two threads: in tiles of their own, and in tiles that they share."""
    model, before = made(tmp_path, kind, form), torch.get_num_threads()
    each = [texts.tokens_of(3 + 27 * i, seed=i) for i in range(12)]
    want = torch.cat([texts.logits(model, tokens)[-1:] for tokens in each])
    slots = np.arange(12 * 304).reshape(12, 304)
    try:
        torch.set_num_threads(2)
        for places in (slots, slots.reshape(304, 12).T):
            kv = texts.storage(model, slots.size)
            for tokens, own in zip(each, places, strict=True):
                model.forward(Rows.of([texts.chunk(tokens, 0, len(tokens) - 1, own)]), kv)
            step = [
                texts.chunk(tokens, len(tokens) - 1, len(tokens), own) for tokens, own in zip(each, places, strict=True)
            ]
            for _ in range(2):  # a row that is written again is what it was
                assert torch.equal(model.forward(Rows.of(step), kv).logits, want)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("form", ["torch float32", "float32"])
def test_a_row_that_runs_no_expert_has_numbers(tmp_path: Path, family: str, form: str) -> None:
    """As rows of padding do: only the hidden state is left. The kernels pad no rows and refuse it."""
    if form == "float32" and not wanted():
        pytest.skip("no kernels here")
    model = made(tmp_path, family, form)
    if isinstance(model, CpuDecoder):
        with pytest.raises(ValueError, match="row 0 runs no expert, and the model has no shared"):
            texts.logits(model, texts.tokens_of(5), groups=0)
        return
    assert texts.logits(model, texts.tokens_of(5), groups=0).isfinite().all()


@pytest.mark.parametrize(
    ("case", "count", "kernels"),
    pairwise((("qwen3_moe", {}), ("qwen3_moe", {"norm_topk_prob": False}), ("gpt_oss", {})), (1, 2, 3), (False, True)),
)
def test_fewer_experts_are_a_model_that_has_no_more(
    tmp_path: Path, case: tuple[str, dict[str, Any]], count: int, kernels: bool
) -> None:
    """The best of the row, their weights divided by their own sum where the model does so."""
    tokens, (family, fields) = texts.tokens_of(30), case
    wide = write_family(tmp_path / "wide", family, **fields)
    narrow = write_family(tmp_path / "narrow", family, **fields, num_experts_per_tok=count)
    got = texts.logits(load(wide, kernels), tokens, groups=count)
    torch.testing.assert_close(got, texts.logits(load(narrow, kernels), tokens), rtol=0, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 15, 17, 40])
def test_few_rows_late_in_a_text(tmp_path: Path, rows: int) -> None:
    """A step has the most phases where several threads share one text's keys; in all its sizes."""
    model = load_model(write_moge(tmp_path), "bfloat16")
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


@pytest.mark.parametrize("form", ["torch float64", *(KERNELS[1:] if wanted() else ())])
def test_a_neighbours_nan_stays_its_own(tmp_path: Path, form: str) -> None:
    dense, tokens = made(tmp_path, "dense", form), texts.tokens_of(10)
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


@compiled
@pytest.mark.parametrize("form", KERNELS)
def test_what_comes_later_may_be_no_number(tmp_path: Path, form: str) -> None:
    """Keys and values of one token overflow; rows before it share its tiles of keys and do not see it."""
    loud, channel = 7, 3
    write_dense(tmp_path, head_dim=32)
    table = load_file(tmp_path / "model.safetensors")
    table["model.embed_tokens.weight"][:, channel] = 0
    table["model.embed_tokens.weight"][loud, channel] = 1
    table["model.layers.0.input_layernorm.weight"][channel] = 3e38
    save_file(table, tmp_path / "model.safetensors", metadata={"format": "pt"})
    options: dict[str, Any] = {"dtype": form}
    if form.startswith("int"):
        options = {"kv_dtype": "int8"} if form == "int8 KV" else {"quantization": form}
    model = load_model(tmp_path, **options)
    tokens = [token for token in texts.tokens_of(80) if token != loud][:60]
    want = texts.logits(model, tokens)
    assert want.isfinite().all()
    for first in (20, 41):
        out = texts.logits(model, [*tokens[:first], *[loud] * (60 - first)])
        assert torch.equal(out[:first], want[:first])
        assert not out[first:].isfinite().all()


def test_each_request_keeps_its_own_max_len(tmp_path: Path) -> None:
    scaling = {"rope_type": "dynamic", "factor": 4.0}
    model = load_model(write_dense(tmp_path, rope_scaling=scaling, max_position_embeddings=16))
    assert model.config.context == 64
    tokens, max_lens, kv = texts.tokens_of(12), (0, 24, 64), texts.storage(model, 36)
    rows = [
        texts.chunk(tokens, 0, 12, np.arange(12 * i, 12 * i + 12), max_len=max_len)
        for i, max_len in enumerate(max_lens)
    ]
    out = model.forward(Rows.of(rows), kv).logits.split(12)
    for got, max_len in zip(out, max_lens, strict=True):
        assert torch.equal(got, texts.logits(model, tokens, [5, 1, 6], max_len=max_len))
    assert not torch.equal(out[0], out[1]) and not torch.equal(out[1], out[2])


@compiled
@pytest.mark.parametrize("kind", [*FAMILIES, *OTHERS])
def test_probabilities_are_the_references(tmp_path: Path, kind: str) -> None:
    """Also where windows begin in another block of keys than they end in."""
    long = kind in ("wide window", "long windows")
    model, tokens = made(tmp_path, kind, "float32"), texts.tokens_of(420 if long else 29)
    for experts in (None, 1, 2) if model.config.routed else (None,):
        want = texts.logits(load(tmp_path, False, "float64"), tokens, groups=experts).log_softmax(-1)
        got = texts.logits(model, tokens, groups=experts).double().log_softmax(-1)
        torch.testing.assert_close(got, want, rtol=0, atol=2e-4 if long else 1e-4)


@compiled
@pytest.mark.parametrize("form", ["bfloat16", "int8 KV"])
def test_keys_before_the_window_are_not_read(tmp_path: Path, form: str) -> None:
    """The keys there may be anything, up to the tile of 16 keys in which the window begins."""
    model, tokens = made(tmp_path, "wide window", form), texts.tokens_of(600)
    count, kv = 590, texts.storage(model, 600)
    slots = np.arange(600)
    model.forward(Rows.of([texts.chunk(tokens, 0, count, slots)]), kv)
    rows = Rows.of([texts.chunk(tokens, count, 600, slots)])
    want = model.forward(rows, kv).logits
    hidden = np.arange((count - 132) // 16 * 16)
    sides = kv.read(hidden)
    nonsense = (side.fill_(torch.nan if side.is_floating_point() else 3) for side in sides)
    kv.write(hidden, *nonsense)
    assert torch.equal(want, model.forward(rows, kv).logits)


@compiled
def test_layers_that_are_skipped_leave_windows_and_norms_to_their_own(tmp_path: Path) -> None:
    """A subset of the layers is the model whose other layers add nothing."""
    some = made(tmp_path, "gpt_oss", "float32").layer_subset([1, 2])
    tokens = texts.tokens_of(40)
    table = load_file(tmp_path / "model.safetensors")
    for name, tensor in table.items():
        skipped = name.startswith(("model.layers.0.", "model.layers.3."))
        if skipped and ("o_proj" in name or "down_proj" in name):
            tensor.zero_()
    save_file(table, tmp_path / "model.safetensors", {"format": "pt"})
    want = texts.logits(load(tmp_path, False, "float64"), tokens).log_softmax(-1)
    got = texts.logits(some, tokens).double().log_softmax(-1)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
