"""Every family on the CPU kernels: against a naive model, and its rows against each other, in all formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import texts
import torch
from checkpoints import FAMILIES, write_family
from family_models import PlainModel
from kernel_tools import compiled
from pangu_v2_tools import write_moe

from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.loader import load_model
from fastslow.engine.types import Rows, Segment

pytestmark = compiled
FORMS = ("float32", "bfloat16", "int8", "int4", "int8 KV")
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "wide window": ("mistral", {"sliding_window": 133}),
    "one kv head": ("mistral", {"num_key_value_heads": 1, "sliding_window": 21}),
    "odd head": ("qwen3", {"head_dim": 36, "num_attention_heads": 6}),
    "not normed": ("qwen3_moe", {"norm_topk_prob": False, "decoder_sparse_step": 2}),
    "long windows": ("gpt_oss", {"sliding_window": 150, "num_local_experts": 40}),
}


def load(folder: Path, shape: str, form: str = "float32") -> CpuDecoder:
    if shape.startswith("pangu"):
        write_moe(folder, param_sink_number=300 if shape.endswith("sinks") else 5, v_channels=12)
    else:
        family, fields = SHAPES[shape]
        write_family(folder, family, **fields)
    if form == "int8 KV":
        model = load_model(folder, "bfloat16", kv_dtype="int8")
    elif form.startswith("int"):
        model = load_model(folder, quantization=form)
    else:
        model = load_model(folder, form)
    assert isinstance(model, CpuDecoder)
    return model


@pytest.mark.parametrize("shape", SHAPES)
def test_probabilities_are_the_references(tmp_path: Path, shape: str) -> None:
    model, tokens = load(tmp_path, shape), texts.tokens_of(29)
    for experts in (None, 1, 2) if model.config.router else (None,):
        want = PlainModel.read(tmp_path).logits(tokens, experts).log_softmax(-1)
        got = texts.logits(model, tokens, groups=experts).double().log_softmax(-1)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", ["wide window", "long windows"])
def test_long_texts_are_the_references(tmp_path: Path, shape: str) -> None:
    """Windows that begin in another block of keys than they end in."""
    model, tokens = load(tmp_path, shape), texts.tokens_of(420)
    want = PlainModel.read(tmp_path).logits(tokens).log_softmax(-1)
    got = texts.logits(model, tokens).double().log_softmax(-1)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [*SHAPES, "pangu", "pangu with many sinks"])
def test_rows_do_not_depend_on_what_runs_beside_them(tmp_path: Path, shape: str, form: str) -> None:
    model = load(tmp_path, shape, form)
    count = 283
    tokens = texts.tokens_of(count)
    whole = texts.logits(model, tokens)
    pieces = [258, *[1] * 6, 19]
    assert torch.equal(whole, texts.logits(model, tokens, pieces))
    scattered = np.random.default_rng(1).permutation(400)[:count]
    assert torch.equal(whole, texts.logits(model, tokens, [3, 126, 1, 5, 148], slots=scattered))
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(whole[-26:], texts.logits(model, tokens, [257, 1, 25])[-26:])
    finally:
        torch.set_num_threads(before)
    _check_tree(model, tokens[:270])


def _check_tree(model: CpuDecoder, text: list[int]) -> None:
    """Every node equals its path decoded token by token, beside requests that run fewer experts."""
    parents, depths = [-1, 0, 0, 1, 2, 2, 5], [0, 1, 1, 2, 2, 2, 3]
    context, nodes = len(text), texts.tokens_of(len(parents), seed=3)
    modes = [None, 2, 1] if model.config.router else [None] * 3
    others = [texts.tokens_of(n, seed=n) for n in (1, 40, 17)]
    places = np.random.default_rng(4).permutation(500)
    slots, free = places[:context], places[300:]
    kv = texts.storage(model, 500)
    model.forward(Rows.of([texts.chunk(text, 0, context, slots)]), kv)
    positions, own = [context + d for d in depths], free[: len(nodes)]
    segments = [Segment(nodes, positions, parents, own, slots, None, range(len(nodes)))]
    free = free[len(nodes) :]
    for other, mode in zip(others, modes, strict=True):
        segments.append(texts.chunk(other, 0, len(other), free[: len(other)], mode))
        free = free[len(other) :]
    out = model.forward(Rows.of(segments), kv).logits
    for node in range(len(nodes)):
        path = [node]
        while parents[path[-1]] >= 0:
            path.append(parents[path[-1]])
        told = text + [nodes[i] for i in reversed(path)]
        alone = texts.logits(model, told, [context] + [1] * len(path))
        assert torch.equal(out[node], alone[-1]), node
    first = len(nodes)
    for other, mode in zip(others, modes, strict=True):
        alone = texts.logits(model, other, groups=mode)
        assert torch.equal(out[first : first + len(other)], alone)
        first += len(other)


@pytest.mark.parametrize("form", ["bfloat16", "int8 KV"])
def test_keys_before_the_window_are_not_read(tmp_path: Path, form: str) -> None:
    """What lies there may be anything, up to the tile of 16 keys in which the window begins."""
    model, tokens = load(tmp_path, "wide window", form), texts.tokens_of(600)
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


def test_no_expert_at_all_is_refused_where_none_is_shared(tmp_path: Path) -> None:
    model = load(tmp_path, "qwen3_moe")
    with pytest.raises(ValueError, match="row 0 runs no expert, and the model has no shared ones"):
        texts.logits(model, [3, 4], groups=0)


def test_layers_that_are_skipped_leave_windows_and_norms_to_their_own(tmp_path: Path) -> None:
    """A subset of the layers is the model whose other layers add nothing."""
    model = load(tmp_path, "gpt_oss")
    some = model.layer_subset([1, 2])
    tokens = texts.tokens_of(40)
    reference = PlainModel.read(tmp_path)
    for name, tensor in reference.tensors.items():
        skipped = name.startswith(("model.layers.0.", "model.layers.3."))
        if skipped and ("o_proj" in name or "down_proj" in name):
            tensor.zero_()
    want = reference.logits(tokens).log_softmax(-1)
    got = texts.logits(some, tokens).double().log_softmax(-1)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
