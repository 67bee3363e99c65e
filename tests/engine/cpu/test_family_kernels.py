"""Every family on the CPU kernels against plain torch in float64; for rows see `test_model_rows.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import texts
import torch
from checkpoints import FAMILIES, write_family
from kernel_tools import compiled
from safetensors.torch import load_file, save_file

from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.loader import load_model
from fastslow.engine.model.base import Model
from fastslow.engine.types import Rows

pytestmark = compiled
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "wide window": ("mistral", {"sliding_window": 133}),
    "one kv head": ("mistral", {"num_key_value_heads": 1, "sliding_window": 21}),
    "odd head": ("qwen3", {"head_dim": 36, "num_attention_heads": 6}),
    "not normed": ("qwen3_moe", {"norm_topk_prob": False, "decoder_sparse_step": 2}),
    "long windows": ("gpt_oss", {"sliding_window": 150, "num_local_experts": 40}),
}


def load(folder: Path, shape: str, form: str = "float32") -> CpuDecoder:
    family, fields = SHAPES[shape]
    write_family(folder, family, **fields)
    kv = form == "int8 KV"
    model = load_model(folder, "bfloat16" if kv else form, kv_dtype="int8" if kv else "auto")
    assert isinstance(model, CpuDecoder)
    return model


def plain(folder: Path) -> Model:
    """Plain torch in float64, which `test_families.py` holds against transformers."""
    return load_model(folder, "float64", "cpu")


@pytest.mark.parametrize("shape", SHAPES)
def test_probabilities_are_the_references(tmp_path: Path, shape: str) -> None:
    """Also where windows begin in another block of keys than they end in."""
    long = shape in ("wide window", "long windows")
    model, tokens = load(tmp_path, shape), texts.tokens_of(420 if long else 29)
    for experts in (None, 1, 2) if model.config.router else (None,):
        want = texts.logits(plain(tmp_path), tokens, groups=experts).log_softmax(-1)
        got = texts.logits(model, tokens, groups=experts).double().log_softmax(-1)
        torch.testing.assert_close(got, want, rtol=0, atol=2e-4 if long else 1e-4)


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


def test_layers_that_are_skipped_leave_windows_and_norms_to_their_own(tmp_path: Path) -> None:
    """A subset of the layers is the model whose other layers add nothing."""
    model = load(tmp_path, "gpt_oss")
    some = model.layer_subset([1, 2])
    tokens = texts.tokens_of(40)
    table = load_file(tmp_path / "model.safetensors")
    for name, tensor in table.items():
        skipped = name.startswith(("model.layers.0.", "model.layers.3."))
        if skipped and ("o_proj" in name or "down_proj" in name):
            tensor.zero_()
    save_file(table, tmp_path / "model.safetensors", {"format": "pt"})
    want = texts.logits(plain(tmp_path), tokens).log_softmax(-1)
    got = texts.logits(some, tokens).double().log_softmax(-1)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
