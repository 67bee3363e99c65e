"""GGUF files of LFM2: the same config, the same tensors and the same answers as the folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import peer_models as peers
import pytest
import texts
import torch
from checkpoints import ROTATED, tensors, write
from gguf import GGMLQuantizationType as Kind
from gguf_tools import write_gguf
from gguf_writer import f32, finish, matrices
from kernel_tools import check_error, compiled

from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.loader import load_model
from fastslow.engine.checkpoint.identity import model_digest
from fastslow.engine.model.config import ModelConfig

LFM2: dict[str, Any] = {name: value for name, value in ROTATED.items() if name != "rms_norm_eps"}
LFM2 |= {"architectures": ["Lfm2ForCausalLM"], "conv_L_cache": 3, "block_auto_adjust_ff_dim": False, "norm_eps": 1e-5}
LFM2 |= {"layer_types": peers.conv_or_full("ccfc"), "hidden_size": 128, "head_dim": 32}
MOE = LFM2 | {"architectures": ["Lfm2MoeForCausalLM"], "num_dense_layers": 1, "num_experts": 8, "conv_L_cache": 4}
MOE |= {
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 64,
    "routed_scaling_factor": 2.5,
    "tie_word_embeddings": True,
}
del MOE["block_auto_adjust_ff_dim"]
ALONE = LFM2 | {"layer_types": None, "tie_word_embeddings": True}
CONFIGS = {"dense": LFM2, "moe": MOE, "attention alone": ALONE}
TOKENS = texts.tokens_of(40)
UNSAID = ("bos_id", "eos_ids", "renames")  # the tokenizer's, which these files have none of


def answers(path: Path) -> torch.Tensor:
    return texts.logits(load_model(path, dtype="float32", progress=False), TOKENS)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_is_the_folder_that_it_was_made_from(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "model", CONFIGS[name], tensors(CONFIGS[name]))
    file = write_gguf(folder, tmp_path / "m.gguf")
    ours, theirs = ModelConfig.from_folder(file), ModelConfig.from_folder(folder)
    for field in fields(ours):
        if field.name not in UNSAID:
            assert getattr(ours, field.name) == getattr(theirs, field.name), field.name
    assert torch.equal(answers(file), answers(folder))
    assert model_digest(file) == model_digest(folder)


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0, Kind.Q5_1], ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", ["dense", "moe"])
def test_a_quantised_file_is_multiplied_out(tmp_path: Path, name: str, kind: Kind) -> None:
    table = tensors(CONFIGS[name])
    pick = matrices(kind)
    folder = write(tmp_path / "model", CONFIGS[name], table)
    file = write_gguf(folder, tmp_path / "m.gguf", pick)
    coarse = 0
    for label, weight in table.items():
        spelled = "ffn_gate_inp" if label.endswith("mlp.gate.weight") else "bias" * label.endswith("bias")
        shape = tuple(weight.squeeze().shape)
        if pick(spelled, shape) == kind:
            blocks = gguf.quants.quantize(weight.numpy(), kind)
            table[label], coarse = torch.from_numpy(gguf.quants.dequantize(blocks, kind)), coarse + 1
    assert coarse > 10
    rounded = write(tmp_path / "rounded", CONFIGS[name], table)
    assert torch.equal(answers(file), answers(rounded))
    assert not torch.equal(answers(file), answers(folder))


@compiled
@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q5_1], ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", ["dense", "moe"])
def test_a_quantised_file_runs_in_its_own_numbers(
    tmp_path: Path, name: str, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No coarser than activations in int8 are; all experts run, since a near tie would change more."""
    config = CONFIGS[name] | ({"num_experts_per_tok": 8} if name == "moe" else {})
    folder = write(tmp_path / "model", config, tensors(config, seed=1))
    file = write_gguf(folder, tmp_path / "m.gguf", matrices(kind))
    model = load_model(file, quantization="auto", progress=False)
    assert isinstance(model, CpuDecoder) and model.formats.name == "gguf-bfloat16"
    check_error(model, file, TOKENS[:20], kind != Kind.Q8_0, monkeypatch)


def kv_heads(heads: list[int]) -> Callable[[gguf.GGUFWriter], object]:
    return lambda writer: put(writer, "attention.head_count_kv", heads)


def put(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    data = writer.kv_data[0][f"{writer.arch}.{name}"]
    data.value = value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (kv_heads([0, 0, 2, 4]), r"attention.head_count_kv \[0, 0, 2, 4\] must have one number besides 0"),
        (kv_heads([0, 2, 0]), r"layer_types \['conv', 'full_attention', 'conv'\] must be a list of 4 types"),
        (lambda w: put(w, "expert_gating_func", 1), "expert_gating_func 1 is not supported, only 2, sigmoid, is"),
        (lambda w: put(w, "shortconv.l_cache", 3), r"conv.weight has shape \[128, 1, 4\].* asks for \[128, 1, 3\]"),
        (lambda w: w.add_tensor("blk.1.exp_probs_b.weight", np.zeros(8, np.float32)), "no place in a lfm2moe model"),
        (lambda w: w.add_tensor("dense_2.weight", np.zeros((8, 8), np.float32)), "no place in a lfm2moe model"),
        (lambda w: w.add_sliding_window(128), "lfm2moe.attention.sliding_window 128 changes the model"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit(tmp_path: Path, change: Callable[[gguf.GGUFWriter], object], said: str) -> None:
    folder = write(tmp_path / "model", MOE, tensors(MOE))
    file = write_gguf(folder, tmp_path / "m.gguf", f32, change)
    with pytest.raises(ValueError, match=said) as caught:
        load_model(file, progress=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "nearest"), [("lfm3", "lfm2"), ("qwen4exp", "qwen35moe")])
def test_known_architectures_that_do_not_run_are_refused_with_the_reason(
    tmp_path: Path, name: str, nearest: str
) -> None:
    finish(gguf.GGUFWriter(tmp_path / "m.gguf", name), ())
    with pytest.raises(ValueError, match=f"architecture '{name}' does not run here: it has .*; the .* is {nearest};"):
        ModelConfig.from_folder(tmp_path / "m.gguf")
