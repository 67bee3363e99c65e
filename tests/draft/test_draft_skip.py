"""A model with some of its layers left out: what a checkpoint without them would say."""

import json
from pathlib import Path
from typing import Any

import pytest
import texts
import torch
from checkpoints import DENSE, MOGE, tensors, write
from engine_tools import SMALL
from kernel_tools import wanted
from refusals import refused
from safetensors.torch import load_file

from fastslow.engine.backends.loader import load_model
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.rows import Rows

LAYERS = 5
EXPERTS = ("num_experts", "moe_intermediate_size", "shared_expert_intermediate_size")
FORMS: dict[str, dict[str, Any]] = {
    "float64": {"dtype": "float64"}, "bfloat16": {"dtype": "bfloat16"}, "int8": {"quantization": "int8"},
}  # fmt: skip
TOKENS = texts.tokens_of(23)


def load(folder: Path, form: str) -> Any:
    if form == "int8" and not wanted():
        pytest.skip("the CPU kernels are not available")
    return load_model(folder, device="cpu", progress=False, **FORMS[form])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for kind, base in (("moge", MOGE), ("dense", DENSE)):
        own = {key: value for key, value in SMALL.items() if kind == "moge" or key not in EXPERTS}
        routed = {"mlp_only_layers": [1]} if kind == "moge" else {}
        config = {**base, **own, "num_hidden_layers": LAYERS, **routed}
        made[kind] = write(tmp_path_factory.mktemp("skip") / kind, config, tensors(config, seed=1))
    return made


def without(folder: Path, source: Path, kept: list[int]) -> Path:
    """The checkpoint in `source` with these layers only."""
    config = json.loads((source / "config.json").read_text("utf-8"))
    config["num_hidden_layers"] = len(kept)
    config["mlp_only_layers"] = [i for i, n in enumerate(kept) if n in config.get("mlp_only_layers", [])]
    table = {}
    for file in source.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            parts = name.split(".")
            if parts[1] == "layers":
                if int(parts[2]) not in kept:
                    continue
                parts[2] = str(kept.index(int(parts[2])))
            table[".".join(parts)] = tensor
    return write(folder, config, table)


@pytest.mark.parametrize(("kind", "form", "kept"), [
    ("moge", "float64", [0, 1, 4]), ("dense", "float64", [2]), ("moge", "bfloat16", [2]),
    ("dense", "bfloat16", [0, 1, 2, 3, 4]), ("moge", "int8", [0, 1, 2, 3, 4]), ("dense", "int8", [0, 1, 4]),
], ids=str)  # fmt: skip
def test_kept_layers_are_a_smaller_model(
    tmp_path: Path, whole: dict[str, Path], kind: str, form: str, kept: list[int]
) -> None:
    model = load(whole[kind], form)
    small = load(without(tmp_path / "small", whole[kind], kept), form)
    for groups in (None, 1) if kind == "moge" else (None,):
        said = texts.logits(model.layer_subset(kept), TOKENS, [20, 3], groups)
        assert torch.equal(said, texts.logits(small, TOKENS, [20, 3], groups))
        assert torch.equal(said, texts.logits(model, TOKENS, groups=groups)) == (len(kept) == LAYERS)
        if form != "float64" and wanted():
            assert model.layer_subset(kept).bytes_for(groups) == small.bytes_for(groups)


@pytest.mark.parametrize("form", FORMS)
def test_the_others_keys_are_left_alone(whole: dict[str, Path], form: str) -> None:
    model = load(whole["dense"], form)
    kv: KVStorage = texts.storage(model, len(TOKENS))
    kv.k[1].fill_(3.0)
    rows = Rows.of([texts.chunk(TOKENS, 0, len(TOKENS), torch.arange(len(TOKENS)).numpy())])
    first = model.layer_subset([0, 2, 3]).layer_subset([0, 3]).forward(rows, kv, features=(3, 0)).features
    assert all(bool(kv.k[n].any()) == (n in (0, 1, 3)) for n in range(LAYERS)) and bool((kv.k[1] == 3).all())
    hidden = model.config.hidden_size
    assert first is not None and first.shape == (len(TOKENS), 2 * hidden)
    every = model.forward(rows, texts.storage(model, len(TOKENS)), features=(0,)).features
    assert every is not None and torch.equal(first[:, hidden:], every)  # layer 0 is layer 0


@pytest.mark.parametrize("form", FORMS)
def test_bad_layers(whole: dict[str, Path], form: str) -> None:
    model = load(whole["moge"], form)
    for layers in ([], [1, 0], [0, 0], [5], [-1, 2]):
        refused(r"^layers \[.*\] must ascend and be in 0\.\.4$", model.layer_subset, layers)
    fewer = model.layer_subset([0, 2])
    refused(r"^layers \[1\] must ascend and be one of \[0, 2\]$", fewer.layer_subset, [1])
    rows = Rows.of([texts.chunk(TOKENS, 0, 1, torch.arange(1).numpy())])
    refused(r"^feature layer 1 must be one of \[0, 2\]$", fewer.forward, rows, texts.storage(model, 1), features=(1,))
