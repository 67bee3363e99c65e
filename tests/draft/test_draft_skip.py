"""A model with some of its layers left out: what a checkpoint without them would say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import texts
import torch
from checkpoints import DENSE, MOGE, tensors, write
from engine_tools import SMALL
from kernel_tools import wanted

from fastslow.engine.backends.loader import load_model
from fastslow.engine.kv.storage import KVStorage
from fastslow.engine.model.base import Model
from fastslow.engine.types import Rows

LAYERS = 5
EXPERTS = ("num_experts", "moe_intermediate_size", "shared_expert_intermediate_size")
DENSE_SMALL = {key: value for key, value in SMALL.items() if key not in EXPERTS}
FORMS: dict[str, dict[str, Any]] = {
    "float64": {"dtype": "float64"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
}
TOKENS = texts.tokens_of(23)


def shape(kind: str, layers: int) -> dict[str, Any]:
    base = {**MOGE, **SMALL} if kind == "moge" else {**DENSE, **DENSE_SMALL}
    routed = {"mlp_only_layers": [1]} if kind == "moge" and layers > 1 else {}
    return {**base, "num_hidden_layers": layers, **routed}


def load(folder: Path, form: str) -> Model:
    if form == "int8" and not wanted():
        pytest.skip("the CPU kernels are not available")
    return load_model(folder, device="cpu", progress=False, **FORMS[form])


def without(folder: Path, whole: Path, kept: list[int]) -> Path:
    """The checkpoint in `whole` with these layers only."""
    from safetensors.torch import load_file

    config = json.loads((whole / "config.json").read_text("utf-8"))
    config["num_hidden_layers"] = len(kept)
    config["mlp_only_layers"] = [
        i for i, n in enumerate(kept) if n in config.get("mlp_only_layers", [])
    ]
    table = {}
    for file in whole.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            parts = name.split(".")
            if parts[1] == "layers":
                if int(parts[2]) not in kept:
                    continue
                parts[2] = str(kept.index(int(parts[2])))
            table[".".join(parts)] = tensor
    return write(folder, config, table)


@pytest.mark.parametrize(
    ("kind", "form", "kept"),
    [
        ("moge", "float64", [0, 1, 4]),
        ("dense", "float64", [2]),
        ("moge", "bfloat16", [2]),
        ("dense", "bfloat16", [0, 1, 2, 3, 4]),
        ("moge", "int8", [0, 1, 2, 3, 4]),
        ("dense", "int8", [0, 1, 4]),
    ],
    ids=str,
)
def test_kept_layers_are_a_smaller_model(
    tmp_path: Path, kind: str, form: str, kept: list[int]
) -> None:
    full = shape(kind, LAYERS)
    whole = write(tmp_path / "whole", full, tensors(full, seed=1))
    model = load(whole, form)
    small = load(without(tmp_path / "small", whole, kept), form)
    for groups in (None, 1) if kind == "moge" else (None,):
        said = texts.logits(model.layer_subset(kept), TOKENS, [20, 3], groups)
        assert torch.equal(said, texts.logits(small, TOKENS, [20, 3], groups))
        plain = texts.logits(model, TOKENS, groups=groups)
        assert torch.equal(said, plain) == (len(kept) == LAYERS)


@pytest.mark.parametrize("form", FORMS)
def test_the_others_keys_are_left_alone(tmp_path: Path, form: str) -> None:
    full = shape("dense", LAYERS)
    model = load(write(tmp_path, full, tensors(full, seed=1)), form)
    kv: KVStorage = texts.storage(model, len(TOKENS))
    kv.k[1].fill_(3.0)
    rows = Rows.of([texts.chunk(TOKENS, 0, len(TOKENS), torch.arange(len(TOKENS)).numpy())])
    fewer = model.layer_subset([0, 2, 3]).layer_subset([0, 3])
    first = fewer.forward(rows, kv, features=(3, 0)).features
    assert all(bool(kv.k[n].any()) == (n in (0, 1, 3)) for n in range(LAYERS))
    assert bool((kv.k[1] == 3).all())
    hidden = model.config.hidden_size
    assert first is not None and first.shape == (len(TOKENS), 2 * hidden)
    whole = model.forward(rows, texts.storage(model, len(TOKENS)), features=(0,)).features
    assert whole is not None and torch.equal(first[:, hidden:], whole)  # layer 0 is layer 0


@pytest.mark.parametrize("form", FORMS)
def test_bad_layers(tmp_path: Path, form: str) -> None:
    full = shape("moge", LAYERS)
    model = load(write(tmp_path, full, tensors(full, seed=1)), form)
    for layers in ([], [1, 0], [0, 0], [5], [-1, 2]):
        with pytest.raises(ValueError, match=r"^layers \[.*\] must ascend and be in 0\.\.4$"):
            model.layer_subset(layers)
    fewer = model.layer_subset([0, 2])
    with pytest.raises(ValueError, match=r"^layers \[1\] must ascend and be one of \[0, 2\]$"):
        fewer.layer_subset([1])
    rows = Rows.of([texts.chunk(TOKENS, 0, 1, torch.arange(1).numpy())])
    with pytest.raises(ValueError, match=r"^feature layer 1 must be one of \[0, 2\]$"):
        fewer.forward(rows, texts.storage(model, 1), features=(1,))


def test_a_step_of_fewer_layers_reads_less(tmp_path: Path) -> None:
    if not wanted():
        pytest.skip("the CPU kernels are not available")
    full = shape("moge", LAYERS)
    whole = write(tmp_path / "whole", full, tensors(full, seed=1))
    model: Any = load_model(whole, "bfloat16", "cpu", progress=False)
    kept = [0, 1, 4]
    small: Any = load_model(without(tmp_path / "small", whole, kept), "bfloat16", "cpu")
    for groups in (None, 0, 1):
        assert model.layer_subset(kept).bytes_for(groups) == small.bytes_for(groups)
