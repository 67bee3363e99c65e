"""W8A8 checkpoints: written, read as they are, run as they are, and refused where they are damaged."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import texts
import torch
from kernel_tools import compiled
from quant_tools import export, quantised
from safetensors.torch import load_file, save_file

from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.loader import load_model
from fastslow.engine.backends.torch.decoder import Decoder
from fastslow.engine.checkpoint.checkpoint import Checkpoint
from fastslow.engine.checkpoint.quantised import QuantKind, Scheme
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.mixers.grouped import GroupedModule
from fastslow.engine.model.ops import Ops, QuantLinear, int8_product, quantise_tokens

DESCRIPTION = "quant_model_description.json"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write_moge(tmp_path_factory.mktemp("float") / "moge", mlp_only_layers=[1])


@pytest.fixture(scope="module")
def w8a8(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantised(source, tmp_path_factory.mktemp("w8a8") / "moge", embedding="int8", kv=True)


def test_what_is_written_is_read(w8a8: Path) -> None:
    config = ModelConfig.from_folder(w8a8)
    scheme = Scheme.from_folder(w8a8)
    assert scheme is not None and scheme.kv
    table = load_file(w8a8 / "model.safetensors")
    described = json.loads((w8a8 / DESCRIPTION).read_text())
    assert set(table) == {name for name in described if "." in name}
    section = json.loads((w8a8 / "config.json").read_text())["quantization_config"]
    assert section["quant_method"] == "ascend" and section["kv_cache_type"] == "C8"
    with Checkpoint.open(w8a8, config, scheme).quantised(False) as reader:
        for name in ("model.embed_tokens.weight", "model.layers.2.mlp.experts.5.down_proj.weight"):
            matrix = reader.linear(name)
            assert matrix is not None and matrix.weight_OI.dtype == torch.int8
            assert torch.equal(matrix.weight_OI, table[name])
            assert torch.equal(matrix.scale_O, table[f"{name}_scale"].float().flatten())
        for name in ("model.norm.weight", "model.layers.0.mlp.gate.weight"):
            assert reader.linear(name) is None
            assert torch.equal(reader.read(name), table[name])


def test_rounding_is_symmetric_and_to_the_nearest() -> None:
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    matrix = QuantLinear.of(weight)
    assert matrix.weight_OI.abs().amax(-1)[[0, 1, 2, 4]].tolist() == [127] * 4
    assert torch.equal(matrix.scale_O, matrix.scale_O.bfloat16().float())
    off = (matrix.dequantised() - weight).abs() / matrix.scale_O.clamp_min(1e-9)[:, None]
    assert off.max() < 0.76 and off.flatten().quantile(0.99) <= 0.5  # 0.75: a scale rounded down
    rows, scale = quantise_tokens(torch.tensor([[1.0, -4, 2], [0, 0, 0], [1, float("nan"), 2]]))
    assert rows.tolist() == [[32, -127, 64], [0, 0, 0], [0, 0, 0]]
    assert scale[0] == 4 / 127 and scale[1] == 0 and scale[2].isnan()


@compiled
@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoints_matrices_are_packed_as_they_are(tmp_path: Path, tied: bool) -> None:
    """With the numbers multiplied out, and rounded again, other bits would run."""
    plain = checkpoints.write_moge(tmp_path / "float", tie_word_embeddings=tied)
    folder = quantised(plain, tmp_path / "w8a8", embedding="int8")
    model = load_model(folder, quantization="auto")
    assert isinstance(model, CpuDecoder) and model.formats.name == "w8a8-float32"
    table = load_file(folder / "model.safetensors")
    piece = model._arena.pieces["0.out"]
    tile = model._memory.address(model._arena.offsets["0.out"], piece.nbytes)
    assert tile is not None
    raw = np.ctypeslib.as_array((ctypes.c_uint8 * piece.nbytes).from_address(tile))
    weight = table["model.layers.0.self_attn.o_proj.weight"].numpy().astype(np.int16)
    quads = raw.reshape(2, -1)[:, : 64 * 32].reshape(2, -1, 32, 4).transpose(0, 2, 1, 3)
    assert (quads.reshape(64, 64).astype(np.int16) - 128 == weight).all()
    exact = texts.logits(load_model(folder, "float32"), texts.tokens_of(30))
    near = texts.logits(model, texts.tokens_of(30))
    assert (near - exact).norm() < 0.2 * exact.norm()
    assert ("embedding" in model._arena.pieces) is not tied


def test_torch_multiplies_whole_numbers(w8a8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "available", lambda: False)
    random = torch.Generator().manual_seed(1)
    weight, x = torch.randn(24, 1040, generator=random), torch.randn(9, 1040, generator=random)
    matrix, bias = QuantLinear.of(weight), torch.randn(24, generator=random)
    rows, steps = quantise_tokens(x)
    whole = rows.long() @ matrix.weight_OI.long().T
    exact = whole.double() * steps[:, None] * matrix.scale_O + bias
    found = int8_product(x, matrix, bias)
    assert torch.allclose(found.double(), exact, rtol=1e-6, atol=1e-6)
    ops = Ops()
    assert torch.equal(ops.linear(x[2:3], matrix.weight_OI, bias, matrix.scale_O), found[2:3])
    model = load_model(w8a8, quantization="auto")
    assert isinstance(model, Decoder)
    mixer = model.weights.layers[0].mixer
    assert isinstance(mixer, GroupedModule) and mixer.qkv.weight.dtype == torch.int8
    tokens = texts.tokens_of(40)
    alone = texts.logits(model, tokens, [1] * 40)
    assert torch.equal(alone, texts.logits(model, tokens))
    exact = texts.logits(load_model(w8a8, "float64"), tokens)
    assert (alone - exact).norm() < 0.25 * exact.norm()


@pytest.mark.parametrize(("kind", "bits"), [("W8A8_DYNAMIC", False), ("W8A8", False), ("W8A8", True)])
def test_exports_of_other_tools_are_read(tmp_path: Path, logged: list[str], kind: str, bits: bool) -> None:
    """Multiplied out they are the same matrices and biases; static inputs are taken per token."""
    plain = checkpoints.write_dense(tmp_path / "float", "PanguEmbeddedForCausalLM")
    folder = export(plain, tmp_path / "w8a8", kind, bits)
    exact = texts.logits(load_model(plain, "float64"), texts.tokens_of(30))
    rounded = texts.logits(load_model(folder, "float64"), texts.tokens_of(30))
    assert 0 < (rounded - exact).norm() < 0.1 * exact.norm()
    assert not any("W8A8" in line for line in logged)
    load_model(folder, quantization="auto")
    assert sum("are W8A8 and run so" in line for line in logged) == 1
    assert any("static" in line for line in logged) == (kind == "W8A8")


Break = Callable[[dict[str, torch.Tensor], dict[str, str]], object]
Q = "model.layers.0.self_attn.q_proj.weight"
SCALE, OFFSET = f"{Q}_scale", f"{Q}_offset"
GATE, STRANGER = "model.layers.0.mlp.gate.weight", "model.layers.9.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda t, d: t.pop(SCALE), r"lacks tensor .*q_proj.weight_scale of shape \[64, 1\]"),
        (lambda t, d: t.update({SCALE: t[SCALE][1:].clone()}), r"weight_scale has shape \[63, 1\]"),
        (lambda t, d: t[SCALE][2].fill_(torch.nan), "q_proj.weight_scale has numbers that are not"),
        (lambda t, d: t.update({OFFSET: torch.ones(64, 1)}), "weight_offset must be 0: int8 weig"),
        (lambda t, d: d.update({Q: "W4A8_DYNAMIC"}), "'W4A8_DYNAMIC', which is not one of the"),
        (lambda t, d: d.update({Q: "FLOAT"}), "q_proj.weight is of dtype I8, which is not one of"),
        (lambda t, d: d.update({GATE: "W8A8_DYNAMIC"}), "gate.weight .* but must be FLOAT"),
        (lambda t, d: d.update({STRANGER: "W8A8_DYNAMIC"}), "up_proj.weight .* model has no such"),
    ],
)
def test_damaged_files_are_refused(w8a8: Path, tmp_path: Path, damage: Break, sentence: str) -> None:
    tensors = load_file(w8a8 / "model.safetensors")
    described = json.loads((w8a8 / DESCRIPTION).read_text())
    damage(tensors, described)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / DESCRIPTION).write_text(json.dumps(described))
    (tmp_path / "config.json").write_text((w8a8 / "config.json").read_text())
    with pytest.raises(ValueError, match=sentence):
        load_model(tmp_path)


def test_other_quantisations_are_refused(w8a8: Path, source: Path, tmp_path: Path) -> None:
    config = json.loads((w8a8 / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"has a quantization_config, but no quant_model_desc"):
        load_model(tmp_path)
    config["quantization_config"] = {"quant_method": "eetq"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="method 'eetq', which is not one of the known gptq, awq,"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="'w8a8' runs checkpoints that are quantised so, and"):
        load_model(source, quantization="w8a8")
    assert Scheme.from_folder(source) is None
    assert Scheme({}).kind("lm_head.weight") is QuantKind.FLOAT
