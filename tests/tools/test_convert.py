"""`fastslow convert`: what a converted folder holds, which neurons become experts, what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_dense
from refusals import refused
from safetensors.torch import load_file
from tokenizers_tiny import write_bpe, write_spm

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.tensors import tensor_shapes
from fastslow.models.dense import Dense
from fastslow.models.recipe import ExpertLayout
from fastslow.tools.convert import NeuronSplit, calibrate, calibration_texts, convert
from fastslow.tools.job_options import ConvertOptions

GROUPS, EXPERTS, SHARED, WIDTH = 4, 4, 56, 8  # the defaults for 96 inner neurons
QUICK = ConvertOptions(groups=GROUPS, experts=EXPERTS, tokens=300, fast=1)


def dense_folder(folder: Path, **overrides: Any) -> Path:
    return write_dense(folder, vocab=write_bpe(folder), **overrides)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_folder(tmp_path_factory.mktemp("dense"), max_position_embeddings=2048)


@pytest.fixture(scope="module")
def layout(folder: Path) -> ExpertLayout:
    rows = torch.randint(0, 320, (4, 40), generator=torch.Generator().manual_seed(1))
    split = NeuronSplit(GROUPS, EXPERTS, SHARED, WIDTH)
    return calibrate(Dense(folder, torch.float32), rows.tolist(), split)


def test_convert_writes_every_official_tensor(folder: Path, tmp_path: Path) -> None:
    out = convert(folder, tmp_path / "moge", QUICK)
    tensors = load_file(out / "model.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes == tensor_shapes(ModelConfig.from_folder(out))
    experts = "model.layers.1.mlp.experts.15"
    assert shapes[f"{experts}.down_proj.weight"] == (64, WIDTH)
    assert shapes["model.layers.0.mlp.router_scale"] == (1, GROUPS * EXPERTS)
    assert shapes["model.layers.0.self_attn.k_proj.bias"] == (32,)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["PanguProMoEForCausalLM"]
    assert (config["num_experts"], config["num_experts_per_tok"]) == (16, 4)
    assert config["shared_expert_intermediate_size"] == SHARED and config["moe_intermediate_size"] == WIDTH
    modes = json.loads((out / "fastslow.json").read_text())["modes"]
    assert (modes["fast"]["groups"], modes["deep"]["groups"]) == (1, None)
    assert (out / "tokenizer.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["moge"]  # no temporary folder stays


def test_convert_keeps_the_biases_of_pangu_embedded(tmp_path: Path) -> None:
    source = tmp_path / "embedded"
    vocab = write_spm(source)
    write_dense(source, "PanguEmbeddedForCausalLM", vocab=vocab, tie_word_embeddings=True, max_position_embeddings=2048)
    out = convert(source, tmp_path / "moge", ConvertOptions(groups=2, tokens=300))
    before, after = (load_file(f / "model.safetensors") for f in (source, out))
    for name in ("q_proj.bias", "o_proj.bias"):
        key = f"model.layers.1.self_attn.{name}"
        assert before[key].abs().sum() > 0 and torch.equal(before[key].bfloat16(), after[key])
    assert "lm_head.weight" not in after and (out / "tokenizer.model").is_file()


def test_layout_uses_each_neuron_once_and_experts_fill_their_pool(layout: ExpertLayout) -> None:
    layout.check(96)
    assert layout.shared.shape == (2, SHARED) and layout.pools.shape == (2, GROUPS, 10)
    assert layout.experts.shape == (2, GROUPS, EXPERTS, WIDTH)
    refused("each of the 97 neurons", layout.check, 97)
    broken = layout.experts.clone()
    broken[0, 0, 0, 0] = broken[0, 0, 0, 1]
    with pytest.raises(ValueError, match="ascending"):
        replace(layout, experts=broken).check(96)
    with pytest.raises(ValueError, match="0..9"):
        replace(layout, experts=layout.experts + 5).check(96)


def test_the_models_own_answers_calibrate(folder: Path) -> None:
    options = ConvertOptions(tokens=600)
    texts = calibration_texts(folder, options)
    assert sum(map(len, texts)) >= 600 > sum(map(len, texts[:-1]))
    assert texts == calibration_texts(folder, options), "the seed says what is drawn"


@pytest.mark.parametrize(("given", "message"), [
    ({"groups": 200}, "groups"), ({"shared": 95}, "divide by groups=4"), ({"shared": 96}, "shared must be 1 to 95"),
    ({"width": 11}, "pool's 10 neurons"), ({"fast": 5}, "fast=5 must be at most groups=4"),
])  # fmt: skip
def test_impossible_conversions_are_refused(folder: Path, tmp_path: Path, given: dict[str, Any], message: str) -> None:
    refused(message, lambda: convert(folder, tmp_path / "moge", ConvertOptions(**{"groups": 4, **given})))


def test_other_models_are_refused(tmp_path: Path) -> None:
    for name, overrides in (
        ("mlp_bias", {"mlp_bias": True}),
        ("hidden_act", {"hidden_act": "gelu"}),
        ("rope_scaling", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
    ):
        with pytest.raises(ValueError, match=name):
            convert(dense_folder(tmp_path / name, **overrides), tmp_path / "moge")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    refused("new or empty", convert, tmp_path / "mlp_bias", tmp_path / "full")
