"""GGUF files of gated delta nets: what files have applied or ordered otherwise, and the layer that drafts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import texts
import torch
from engine_tools import Ask, Bench, Setting
from family_tools import KERNELS, load
from gguf import GGMLQuantizationType as Kind
from gguf_hybrid import HYBRID, write_hybrid
from gguf_tools import arranged, setting, write_apart, write_gguf
from gguf_writer import f32, matrices
from hybrid_model import FULL, LINEAR
from kernel_tools import check_error, compiled
from loguru import logger
from mtp_tools import SpiedMtp
from refusals import refused

from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.cpu.pieces.limits import unsupported
from fastslow.engine.backends.loader import load_model
from fastslow.engine.checkpoint.identity import model_digest
from fastslow.engine.host.gguf_file import gguf_files
from fastslow.engine.model.base import Model
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.mixers.delta import GatedDelta
from fastslow.engine.params import SamplingParams

LONG = texts.tokens_of(150)
WIDE = {"hidden_size": 128, "head_dim": 32, "vocab_size": 320, "linear_key_head_dim": 32}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in HYBRID},
    "tied": ("qwen35", {"tie_word_embeddings": True}),
    "a value head a key head": ("qwen35", {"linear_num_value_heads": 2}),
    "attention first": ("qwen35", {"layer_types": [FULL, LINEAR, FULL, LINEAR], "linear_num_value_heads": 4}),
    "no drafts": ("qwen35moe", {"mtp_num_hidden_layers": 0}),
}


def logprobs(model: Model) -> torch.Tensor:
    return texts.logits(model, LONG).double().log_softmax(-1)


@pytest.fixture
def told() -> Any:
    """The log's lines."""
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line)), level="INFO", format="{message}")
    yield lines
    logger.remove(sink)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_file_is_the_folder_that_it_was_made_from(tmp_path: Path, name: str, kernels: bool) -> None:
    arch, fields = VARIANTS[name]
    folder = write_hybrid(tmp_path / "model", arch, **fields)
    file = write_gguf(folder, tmp_path / "m.gguf")
    found, wanted = load(file, kernels), load(folder, False)
    torch.testing.assert_close(logprobs(found), logprobs(wanted), rtol=0, atol=1e-4)
    assert (found.mtp is None) == (name == "no drafts")
    again = write_gguf(folder, tmp_path / "again.gguf")
    assert model_digest(file) == model_digest(again)


def test_an_interval_stands_for_a_list_of_layers(tmp_path: Path) -> None:
    folder = write_hybrid(tmp_path / "model", "qwen35", layer_types=[LINEAR, LINEAR, LINEAR, FULL])
    key = "qwen35.attention.recurrent_layers"
    file, without = (write_gguf(folder, tmp_path / f"{n}.gguf", change=setting(key, None)) for n in "ab")
    assert ModelConfig.from_folder(file).layers == ModelConfig.from_folder(without).layers
    assert torch.equal(logprobs(load_model(file)), logprobs(load_model(without)))


@pytest.mark.parametrize(("name", "usual"), [("qwen35", True), ("qwen3next", False)])
def test_a_header_may_say_the_order_of_value_heads(tmp_path: Path, name: str, usual: bool) -> None:
    folder = write_hybrid(tmp_path / "model", name)
    for said, wanted in ((None, usual), (True, True), (False, False)):
        file = write_gguf(folder, tmp_path / "m.gguf", change=setting(f"{name}.ssm.v_head_reordered", said))
        mixer = ModelConfig.from_folder(file).layers[0].mixer
        assert isinstance(mixer, GatedDelta) and mixer.tiled is wanted


@pytest.mark.parametrize(("name", "kind"), [(name, Kind.Q8_0) for name in HYBRID] + [("qwen35", Kind.Q4_0)])
def test_a_quantised_file_is_its_numbers_multiplied_out(tmp_path: Path, name: str, kind: Kind) -> None:
    """Alphas and betas, too."""
    folder = write_hybrid(tmp_path / "model", name)
    file = write_gguf(folder, tmp_path / "q.gguf", matrices(kind))
    plain = write_gguf(folder, tmp_path / "m.gguf", rounded=matrices(kind))
    found, wanted = logprobs(load(file, False)), logprobs(load(plain, False))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert not torch.allclose(wanted, logprobs(load(folder, False)), atol=1e-3)


@compiled
@pytest.mark.parametrize(("name", "kind"), [(name, Kind.Q8_0) for name in HYBRID] + [("qwen35", Kind.Q4_1)])
def test_kernels_run_a_file_in_its_own_numbers(
    tmp_path: Path, name: str, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_chosen = {"num_experts_per_tok": 8} if "num_experts" in HYBRID[name] else {}
    folder = write_hybrid(tmp_path / "model", name, seed=1, **all_chosen, **WIDE)
    file = write_gguf(folder, tmp_path / "m.gguf", matrices(kind))
    if (reason := unsupported(ModelConfig.from_folder(file))) is not None:
        pytest.skip(reason)
    model = load_model(file, quantization="auto")
    assert isinstance(model, CpuDecoder) and model.formats.name == "gguf-bfloat16"
    check_error(model, file, texts.tokens_of(20, vocab=320), False, monkeypatch)


def older(tensors: dict[str, Any]) -> dict[str, Any]:
    """Queries, keys, values and gates of a key head together, as the first files of Qwen3-Next had them."""
    found = dict(tensors)
    keys, width = HYBRID["qwen3next"]["linear_num_key_heads"], HYBRID["qwen3next"]["linear_key_head_dim"]
    for name, qkv in tensors.items():
        if name.endswith("attn_qkv.weight"):
            z = found.pop(name.replace("attn_qkv", "attn_gate"))
            cut = keys * width
            parts = [x.reshape(keys, -1, x.shape[-1]) for x in (qkv[:cut], qkv[cut : 2 * cut], qkv[2 * cut :], z)]
            del found[name]
            found[name.replace("attn_qkv", "ssm_in")] = np.concatenate(parts, 1).reshape(-1, qkv.shape[-1])
    return found


def joined(tensors: dict[str, Any]) -> dict[str, Any]:
    """Gates and ups of experts in one tensor."""
    found = dict(tensors)
    for name, gate in tensors.items():
        if name.endswith("ffn_gate_exps.weight"):
            sides = gate, found.pop(name.replace("gate", "up"))
            del found[name]
            found[name.replace("gate", "gate_up")] = np.concatenate(sides, 1)
    return found


@pytest.mark.parametrize(("name", "change"), [("qwen3next", older), ("qwen3next", joined), ("qwen35moe", joined)])
@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q8_0])
def test_rows_of_several_tensors_in_one_are_found(
    tmp_path: Path, name: str, change: Callable[..., Any], kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, pick = write_hybrid(tmp_path / "model", name), f32 if kind is Kind.F32 else matrices(kind)
    usual = logprobs(load(write_gguf(folder, tmp_path / "m.gguf", pick), False))
    monkeypatch.setattr("gguf_tools.arranged", lambda *arguments: change(arranged(*arguments)))
    other = write_gguf(folder, tmp_path / "other.gguf", pick)
    assert torch.equal(logprobs(load(other, False)), usual)


def drafts(model: Model) -> list[tuple[list[int], tuple[int, ...]]]:
    """Texts of a batch, and what the MTP layer drafted for each."""
    spied: list[SpiedMtp] = []

    def make(kv: Any) -> SpiedMtp:
        spied.append(SpiedMtp(model, kv))
        return spied[-1]

    greedy = SamplingParams(max_tokens=16, ignore_eos=True)
    asks = [Ask(tuple(texts.tokens_of(n, n)), greedy, "mtp", 3) for n in (3, 21, 40)]
    Bench(model, {"mtp": make}).run(asks, Setting(prompt_rows=16))
    return [(tokens, tuple(tree.tokens)) for tokens, tree in spied[0].made]


@pytest.mark.parametrize("kernels", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("name", HYBRID)
def test_the_layer_that_drafts_says_the_same_in_a_file_of_its_own(
    tmp_path: Path, name: str, kernels: bool, told: list[str]
) -> None:
    folder = write_hybrid(tmp_path / "folder", name)
    wanted = drafts(load(folder, kernels))
    assert len(wanted) > 12
    for made in ("one", "two"):
        (tmp_path / made).mkdir()
    assert drafts(load(write_gguf(folder, tmp_path / "one" / "m.gguf"), kernels)) == wanted
    file, beside = write_apart(folder, tmp_path / "two" / "m.gguf")
    assert gguf_files(file) == [file, beside]
    assert drafts(load(file, kernels)) == wanted
    assert "the layer for multi-token prediction is read from mtp-m.gguf" in "".join(told)
    refused(f"{beside}: it has a layer for multi-token prediction alone: open the", load_model, beside)
    beside.unlink()
    assert load(file, False).mtp is None


def test_a_file_beside_a_model_is_read_where_it_fits(tmp_path: Path, told: list[str]) -> None:
    folder = write_hybrid(tmp_path / "folder", "qwen35")
    file, beside = write_apart(folder, tmp_path / "m.gguf")
    other = write_hybrid(tmp_path / "other", "qwen35", hidden_size=32)
    write_apart(other, tmp_path / "a.gguf")
    file.with_name("mtp-b.gguf").write_bytes(b"GGUF")
    beside.rename(file.with_name("mtp-c.gguf"))
    assert load_model(file).mtp is not None
    assert "read from mtp-c.gguf" in "".join(told)
    assert sum("a file beside m.gguf is not read: " in line for line in told) == 1
    digest = model_digest(file)
    file.with_name("mtp-c.gguf").unlink()
    assert model_digest(file) != digest


def test_copies_of_embedding_and_head_are_told_of(
    tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def more(*arguments: Any) -> dict[str, Any]:
        found = arranged(*arguments)
        return found | {"blk.4.nextn.embed_tokens.weight": found["token_embd.weight"]}

    folder = write_hybrid(tmp_path / "folder", "qwen35")
    plain = logprobs(load_model(write_gguf(folder, tmp_path / "m.gguf")))
    monkeypatch.setattr("gguf_tools.arranged", more)
    assert torch.equal(logprobs(load_model(write_gguf(folder, tmp_path / "c.gguf"))), plain)
    assert "mtp.embed_tokens.weight are not read: drafts are made by one layer" in "".join(told)


@pytest.mark.parametrize(("key", "value", "message"), [
    ("ssm.inner_size", 100, "ssm.inner_size 100 must be a multiple of ssm.time_step_rank 6"),
    ("ssm.inner_size", None, "ssm.inner_size None must be a multiple"),
    ("ssm.inner_size", 96, "tensor model.layers.0.linear_attn.* has shape"),
    ("ssm.time_step_rank", 0, "must be a multiple of ssm.time_step_rank 0"),
    ("ssm.group_count", 4, "linear_num_value_heads 6 must be a multiple of linear_num_key_heads 4"),
    ("ssm.state_size", 8, "tensor model.layers.0.linear_attn.* has shape"),
    ("ssm.conv_kernel", 1, "linear_conv_kernel_dim 1 must be at least 2"),
    ("ssm.conv_kernel", 5, r"conv1d.weight has shape \[256, 1, 4\], but its header asks for \[256, 1, 5\]"),
    ("rope.dimension_count", 17, "rope.dimension_count 17 must be from 1 to attention.key_length 16"),
    ("nextn_predict_layers", 5, "nextn_predict_layers 5 must be less than block_count 5"),
    ("nextn_predict_layers", 2, "mtp_num_hidden_layers 2 must be at most 1"),
    ("block_count", 9, "layer_types .* must be a list of 8 types"),
    ("attention.recurrent_layers", [True] * 3, "layer_types .* must be a list of 4 types"),
    ("attention.recurrent_layers", [True] * 5, "lacks tensor model.layers.2.linear_attn|unexpected tensor"),
    ("ssm.dt_b_c_rms", 1, "qwen35.ssm.dt_b_c_rms 1 changes the model in a way that is not known"),
])  # fmt: skip
def test_a_header_that_does_not_fit_is_one_sentence(tmp_path: Path, key: str, value: Any, message: str) -> None:
    folder = write_hybrid(tmp_path / "model", "qwen35")
    refused(message, load_model, write_gguf(folder, tmp_path / "m.gguf", change=setting(f"qwen35.{key}", value)))


@pytest.mark.parametrize(("arch", "missing", "message"), [
    ("qwen35", "blk.1.ssm_a", "lacks tensor model.layers.1.linear_attn.decay"),
    ("qwen35", "blk.3.ssm_dt.bias", "lacks tensor model.layers.3.linear_attn.dt_bias"),
    ("qwen35", "blk.2.attn_q_norm.weight", "lacks tensor model.layers.2.self_attn.q_norm.weight"),
    ("qwen3next", "blk.0.ssm_ba.weight", "lacks tensor model.layers.0.linear_attn.in_proj_b.weight"),
    ("qwen35moe", "blk.1.ffn_gate_inp_shexp.weight", "lacks tensor model.layers.1.mlp.shared_expert_gate.weight"),
])  # fmt: skip
def test_a_tensor_too_few_is_one_sentence(tmp_path: Path, arch: str, missing: str, message: str) -> None:
    folder = write_hybrid(tmp_path / "model", arch)
    refused(message, load_model, write_gguf(folder, tmp_path / "m.gguf", keep=lambda name: name != missing))


def test_a_layer_that_drafts_with_a_tensor_too_few_does_not_run(tmp_path: Path, told: list[str]) -> None:
    folder = write_hybrid(tmp_path / "model", "qwen35")
    missing = "blk.4.nextn.enorm.weight"
    assert load_model(write_gguf(folder, tmp_path / "m.gguf", keep=lambda name: name != missing)).mtp is None
    assert "does not run: tensor mtp.pre_fc_norm_embedding.weight is missing" in "".join(told)


def test_heads_in_an_unknown_order_are_refused(tmp_path: Path) -> None:
    """What another architecture's file would have, and one that nobody knows."""
    folder = write_hybrid(tmp_path / "model", "qwen3next")
    file = write_gguf(folder, tmp_path / "m.gguf")
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"qwen3next", b"qwen35moe"))
    refused("tensor 'blk.0.ssm_ba.weight' has no place in a qwen35moe model", load_model, file)
    file.write_bytes(whole.replace(b"qwen3next", b"qwen36moe"))
    refused("general.architecture 'qwen36moe' does not run here", load_model, file)
    uneven = write_gguf(folder, file, change=setting("qwen3next.ssm.group_count", 5))
    refused("linear_num_value_heads 6 must be a multiple of linear_num_key_heads 5", load_model, uneven)


def test_a_tensor_in_two_forms_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_hybrid(tmp_path / "model", "qwen3next")
    monkeypatch.setattr("gguf_tools.arranged", lambda *arguments: arranged(*arguments) | older(arranged(*arguments)))
    refused(r"tensor model.layers.\d.linear_attn.in_proj_\w+.weight is there twice", load_model,
            write_gguf(folder, tmp_path / "m.gguf"))  # fmt: skip
