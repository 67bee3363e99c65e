"""Gemma 3 and 4: windows, heads of two sizes, keys of earlier layers, per-layer embeddings, experts beside the MLP."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import gemma_models as gemma
import peer_models as peers
import pytest
import texts
import torch
from checkpoints import write
from family_tools import KERNELS, LONG, check_however_cut, load
from gguf import GGMLQuantizationType as Kind
from gguf_gemma import write_gemma
from gguf_tools import setting
from gguf_writer import matrices
from layer_fuzz import FEW_AND_MANY, LayerFuzz
from refusals import refused
from safetensors.torch import load_file

from fastslow.engine.backends.loader import load_model
from fastslow.engine.backends.torch.decoder import Decoder
from fastslow.engine.checkpoint.row_file import RowFile
from fastslow.engine.kv.state.layout import RowState, SharedState
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.mixers.rope import RopeScaling

QUICK = ("gemma3", "gemma4", "gemma4 mixture")
SHAPES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in gemma.SHAPES]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", SHAPES)
def test_logprobs_are_those_of_transformers_however_a_text_is_cut(name: str, kernels: bool, tmp_path: Path) -> None:
    theirs = gemma.build(name)
    model = load(peers.write(tmp_path, theirs), kernels)
    check_however_cut(model, peers.logprobs(theirs, LONG), 20)


FUZZED = [
    pytest.param(case, marks=() if case[1] else pytest.mark.slow, id=str(case))
    for case in product(("gemma4", "gemma4 mixture"), KERNELS)
]


@pytest.fixture(scope="module", params=FUZZED)
def fuzz(request: Any, tmp_path_factory: pytest.TempPathFactory) -> LayerFuzz:
    name, kernels = request.param
    folder = peers.write(tmp_path_factory.mktemp("gemma"), gemma.build(name, vocab_size=32))
    config, own = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    return LayerFuzz.of(folder, config, own, kernels)


@FEW_AND_MANY
def test_answers_are_those_of_plain_decoding(fuzz: LayerFuzz, count: int) -> None:
    fuzz.check(count)


def test_rows_by_token_are_read_from_the_file(tmp_path: Path) -> None:
    """float32, bfloat16 and float16; and the text part of a model of images, with keys that nothing reads."""
    folder, tokens = peers.write(tmp_path, gemma.build("gemma4")), LONG[:40]
    table = load_file(folder / "model.safetensors")
    inside = {n.replace("model.", "model.language_model.", 1): x for n, x in table.items()}
    inside |= {f"model.language_model.layers.4.self_attn.{n}.weight": torch.ones(2) for n in ("k_norm", "v_proj")}
    inside["model.vision_tower.a.weight"] = torch.ones(2)
    text = json.loads((folder / "config.json").read_text())
    config = {"architectures": ["Gemma4ForConditionalGeneration"], "text_config": text, "vision_config": {"a": 1}}
    wanted = texts.logits(load(folder, False), tokens)
    for dtype in ("float32", "bfloat16", "float16"):
        stored = inside["model.language_model.embed_tokens_per_layer.weight"].to(getattr(torch, dtype))
        whole = inside | {"model.language_model.embed_tokens_per_layer.weight": stored}
        model = load(write(tmp_path / dtype, config, whole), False)
        assert isinstance(model, Decoder) and model.weights.per_layer is not None
        assert isinstance(model.weights.per_layer.table, RowFile)
        found = texts.logits(model, tokens)
        assert found.equal(wanted) if dtype == "float32" else not found.equal(wanted) and (found - wanted).std() < 0.02


def test_published_configs() -> None:
    """Fields that text parts of folders on the hub have; the others are those of the class."""
    scaling = {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "model_type": "gemma3_text"}
    raw = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": text | scaling,
        "mm_tokens_per_image": 256,
    }
    raw |= {"boi_token_index": 255999, "eoi_token_index": 256000, "image_token_index": 262144, "eos_token_id": [1, 106]}
    config = ModelConfig.from_json(raw)
    attention = [layer.mixer for layer in config.layers if isinstance(layer.mixer, GroupedAttention)]
    assert [m.window for m in attention[:6]] == [1024] * 5 + [0] and config.context == 131072
    assert {(m.rope and m.rope.theta, m.rope and m.rope.scaling, m.scale) for m in attention} == {
        (1e4, None, 1 / 16), (1e6, RopeScaling("linear", 8.0), 1 / 16)
    }  # fmt: skip
    assert config.vocab_size == 262208 and config.eos_ids == (1, 106) and config.tie_word_embeddings
    e2b = ModelConfig.from_json(E2B)
    assert [layer.mixer.state for layer in e2b.layers[13:17]] == [
        RowState(1, 256, 256, 512), RowState(1, 512, 512), SharedState(13), SharedState(13)
    ]  # fmt: skip
    assert {layer.ffn for layer in e2b.layers[15:]} == {DenseMlp(12288, "gelu_tanh")}
    assert e2b.per_layer_embedding is not None and e2b.per_layer_embedding.width == 256
    alike = ModelConfig.from_json(E2B | {"per_layer_config": {}})  # as transformers saves heads of one size
    assert alike.layers[14].mixer.state == RowState(1, 256, 256)


E2B: dict[str, Any] = {
    "architectures": ["Gemma4ForCausalLM"], "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 35,
    "num_key_value_heads": 1, "num_kv_shared_layers": 20, "use_double_wide_mlp": True, "sliding_window_pattern": 5,
    "final_logit_softcapping": 30.0, "model_type": "gemma4_text",
}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention 'all' is not supported, only vision is"),
        ({"num_kv_shared_layers": 35}, "num_kv_shared_layers 35 must be at most 34"),
        ({"num_kv_shared_layers": 32}, "num_kv_shared_layers 32 leaves no full_attention with keys"),
        ({"vocab_size_per_layer_input": 9}, "vocab_size_per_layer_input 9 must be at least vocab_size 262144"),
        ({"per_layer_config": {"34": {"sliding_window": 3}}}, "per_layer_config.34.sliding_window 3 changes the model .*"),
        ({"per_layer_config": {"35": {"head_dim": 8}}}, "per_layer_config.35 .* changes the model .*"),
        ({"rope_parameters": {"rope_theta": 9.0}}, "rope_parameters.rope_theta 9.0 changes the model .*"),
        ({"num_global_key_value_heads": 3, "attention_k_eq_v": True}, "num_attention_heads 8 must be a multiple of .* 3"),
        ({"attn_logit_softcapping": 3.0}, "attn_logit_softcapping 3.0 changes the model .*"),
        ({"enable_moe_block": True, "top_k_experts": 4}, "moe_intermediate_size is missing"),
        ({"rope_local_base_freq": 0}, "rope_theta 0 must be .*"),
        ({"hidden_activation": "relu"}, "hidden_act 'relu' is not supported, .*"),
    ],
)  # fmt: skip
def test_configs_that_do_not_fit(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        ModelConfig.from_json(E2B | fields)


GGUF = ("gemma3 stretched", "gemma4", "gemma4 mixture")
WHOLE = matrices(Kind.Q8_0)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", GGUF)
def test_a_gguf_file_says_what_its_folder_says(name: str, kernels: bool, tmp_path: Path) -> None:
    theirs = gemma.build(name, query_pre_attn_scalar=16) if name in GGUF[:1] else gemma.build(name)
    folder, tokens = peers.write(tmp_path, theirs), LONG[:60]
    model = load(write_gemma(folder, tmp_path / "f32.gguf"), kernels)
    found = texts.logits(model, tokens).double().log_softmax(-1)
    torch.testing.assert_close(found, peers.logprobs(theirs, tokens), rtol=0, atol=1e-4)
    file, rounded = tmp_path / "q8.gguf", tmp_path / "rounded.gguf"
    write_gemma(folder, file, WHOLE)
    found = texts.logits(load(write_gemma(folder, rounded, rounded=WHOLE), kernels), tokens)
    assert texts.logits(load(file, kernels), tokens).equal(found)
    if kernels:
        own = texts.logits(load_model(file, "auto", "cpu", False, "auto"), tokens)
        assert (own - found).std() < 0.3 * found.std()  # int8 inputs choose other experts at times
    lacking = write_gemma(folder, file, change=setting(f"{name[:6]}.block_count", None))
    refused("num_hidden_layers is missing", ModelConfig.from_folder, lacking)
    if name != GGUF[0]:  # whose norms are not less one in the file
        same: dict[str, Any] = {"dtype": None, "eos_ids": (), "bos_id": None}
        assert replace(model.config, **same) == replace(ModelConfig.from_folder(folder), **same)
