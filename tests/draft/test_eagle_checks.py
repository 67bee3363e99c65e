"""Published heads that do not fit the target, or are damaged, are refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from eagle_tools import eagle_config, eagle_weights, write_eagle, write_files
from engine_tools import write_kin
from torch import Tensor

from fastslow.draft.head.runner import load_head

Fields = dict[str, Any]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("eagle") / "target"
    return write_kin(made, vocab_size=12, num_hidden_layers=2)


def refused(folder: Path, target: Path) -> str:
    with pytest.raises(ValueError, match=f"^head {folder}") as caught:
        load_head(folder, target)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < len(str(folder)) + 500
    return str(caught.value)


@pytest.mark.parametrize(
    ("layout", "fields", "sentence"),
    [
        ("original", {"hidden_size": 64}, "of a target with hidden_size 64, this one has 32"),
        ("original", {"vocab_size": 90}, "of a target with vocab_size 90, this one has 12"),
        ("original", {"draft_vocab_size": 13}, "draft_vocab_size 13 must be at most 12"),
        (
            "original",
            {"eagle_aux_hidden_state_layer_ids": [1, 3]},
            r"layer_ids \[1, 3\] are not all outputs of the target's 2 layers",
        ),
        ("original", {"eagle_aux_hidden_state_layer_ids": [0]}, r"layer_ids \[0\] are not all"),
        ("original", {"eagle_aux_hidden_state_layer_ids": None}, "are not in a target of 2 layers"),
        ("original", {"eagle_aux_hidden_state_layer_ids": "1"}, "must be whole numbers"),
        ("original", {"eagle_config": {"use_aux_hidden_state": False}}, "only true is"),
        ("original", {"eagle_config": 3}, "eagle_config must be an object"),
        ("original", {"architectures": ["MedusaModel"]}, "'MedusaModel' is no EAGLE-3 head"),
        ("original", {"num_hidden_layers": 2}, "num_hidden_layers 2 is not supported"),
        ("original", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ("original", {"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads 3"),
        ("original", {"model_type": "gemma"}, "model_type 'gemma' of the layer is not one of"),
        ("original", {"fc_norm": True, "norm_before_fc": True}, "exclude each other"),
        ("original", {"norm_output": "yes"}, "norm_output 'yes' must be true or false"),
        ("speculators", {"speculators_model_type": "peagle"}, "'peagle' is not supported, only"),
        ("speculators", {"speculators_model_type": "dflash"}, "'dflash' is not supported, only"),
        ("speculators", {"transformer_layer_config": None}, "must be an object, got None"),
        ("speculators", {"target_hidden_size": 16}, "hidden_size 16, this one has 32"),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit(
    tmp_path: Path, target: Path, layout: str, fields: Fields, sentence: str
) -> None:
    config = eagle_config(target, layout)
    folder = write_files(tmp_path / "head", {**config, **fields}, eagle_weights(config))
    with pytest.raises(ValueError, match=sentence):
        load_head(folder, target)
    refused(folder, target)


Change = Callable[[dict[str, Tensor]], Any]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda w: w.pop("fc.weight"), "it lacks tensor fc.weight of shape [32, 64]"),
        (lambda w: w.pop("d2t"), "it lacks tensor d2t of shape [10]"),
        (
            lambda w: w.update({"midlayer.self_attn.q_proj.weight": torch.zeros(64, 32)}),
            "tensor midlayer.self_attn.q_proj.weight is [64, 32], not [64, 64]",
        ),
        (lambda w: w.update(t2d=torch.ones(11).bool()), "tensor t2d is [11], not [12]"),
        (lambda w: w.update(t2d=torch.ones(12).bool()), "t2d and d2t name different tokens"),
        (lambda w: w.update(d2t=w["d2t"] + 3), "d2t leads to token 12, outside the target's"),
        (lambda w: w.update(d2t=w["d2t"] - 9), "d2t leads to token -9, outside the target's"),
        (lambda w: w.update(d2t=-torch.arange(10)), "d2t leads to some token twice"),
        (lambda w: w.update(d2t=w["d2t"].float()), "d2t is of torch.float32, and must hold whole"),
        (
            lambda w: w.update({"norm.weight": torch.ones(32, dtype=torch.int8)}),
            "tensor norm.weight is of torch.int8, and must hold floats",
        ),
        (
            lambda w: w.update({"midlayer.mlp.router.weight": torch.ones(2)}),
            "it has an unexpected tensor midlayer.mlp.router.weight",
        ),
        (
            lambda w: w.update({"embed_tokens.weight": torch.ones(9, 32)}),
            "is [9, 32], not [12, 32]",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_that_do_not_fit(
    tmp_path: Path, target: Path, change: Change, sentence: str
) -> None:
    config = eagle_config(target)
    weights = eagle_weights(config)
    weights["d2t"], weights["t2d"] = torch.zeros(10, dtype=torch.long), torch.arange(12) < 10
    change(weights)
    assert sentence in refused(write_files(tmp_path / "head", config, weights), target)


def test_a_head_of_its_own_width_needs_its_own_embedding(tmp_path: Path, target: Path) -> None:
    fields: Fields = {"hidden_size": 48, "target_hidden_size": 32}
    without = write_eagle(tmp_path / "without", target, **fields)
    assert "lacks tensor embed_tokens.weight" in refused(without, target)
    runner = load_head(write_eagle(tmp_path / "with", target, embedding=True, **fields), target)
    assert runner.config.hidden == 48


def test_files_that_are_damaged_or_of_another_kind(tmp_path: Path, target: Path) -> None:
    folder = write_eagle(tmp_path / "head", target)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-40])
    assert "cannot be read" in refused(folder, target)
    (folder / "model.safetensors").unlink()
    assert "it has no model.safetensors" in refused(folder, target)
    torch.save(eagle_weights(eagle_config(target)), folder / "pytorch_model.bin")
    said = refused(folder, target)
    assert "pytorch_model.bin is not loaded" in said
    command = said.partition('python -c "')[2].removesuffix('"`')
    run = pytest.MonkeyPatch()
    with run.context() as patch:
        patch.chdir(folder)
        exec(command)  # noqa: S102 - what the sentence tells the user to run
    assert load_head(folder, target).vocab_size == 12
    (folder / "config.json").write_text("{")
    assert "is not valid JSON" in refused(folder, target)
    (folder / "config.json").unlink()
    assert "it has no config.json, so it is no published head" in refused(folder, target)


def test_weights_of_a_verifier_are_left_out(tmp_path: Path, target: Path) -> None:
    config = eagle_config(target, "speculators")
    weights = eagle_weights(config) | {"verifier_norm.weight": torch.ones(32)}
    assert load_head(write_files(tmp_path / "head", config, weights), target).vocab_size == 12
    assert json.loads((tmp_path / "head" / "config.json").read_text()) == config
