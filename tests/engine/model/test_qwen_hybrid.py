"""Qwen3.5 and Qwen3-Next: gated delta nets beside attention with gates, dense or with experts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peer_models as peers
import pytest
import texts
import torch
from chat_templates import QWEN3_5, write_marked
from checkpoints import write
from family_tools import KERNELS, LONG, check_however_cut, load
from gate import open_llm
from hybrid_model import CONFIG, HybridReference, table
from loguru import logger
from refusals import refused
from safetensors.torch import load_file, save_file

from fastslow import SamplingParams
from fastslow.engine.backends.loader import load_model
from fastslow.engine.checkpoint.checkpoint import floats
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.mixers.delta import GatedDelta
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.mixers.rope import Rope, RopeScaling
from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.text.tokenizer_files.config import read_settings

NAMES = [name for name in peers.SHAPES if name.startswith(("qwen3_5", "qwen3_next"))]
SHAPES = [pytest.param(name, marks=() if name in peers.FIRST else pytest.mark.slow) for name in NAMES]
GREEDY = SamplingParams(max_tokens=8, ignore_eos=True)
VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
VISION |= {"num_position_embeddings": 16}


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", SHAPES)
def test_logprobs_are_those_of_transformers_however_a_text_is_cut(name: str, kernels: bool, tmp_path: Path) -> None:
    theirs = peers.build(name)
    model = load(peers.write(tmp_path, theirs), kernels)
    check_however_cut(model, peers.logprobs(theirs, LONG), 20 if name in peers.FIRST else 600)


def test_dims_that_stand_still_are_not_scaled() -> None:
    """YaRN's factor is of those that rotate."""
    rope = Rope(32, 10000.0, 64, RopeScaling("yarn", 4.0, attention_factor=1.5), width=16)
    cos, sin = rope.rotation(np.arange(3), np.zeros(3, dtype=np.int64), torch.float64, torch.device("cpu"))
    assert (cos[0, 0].reshape(2, 2, 8) == torch.tensor([1.5, 1.0])[:, None]).all()
    assert not sin.view(3, 2, 2, 8)[:, :, 1].any() and sin[2].any()


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("name", ["qwen3_5 tied", "qwen3_5_moe"])
def test_the_text_part_of_a_model_for_images_runs(name: str, stacked: bool, tmp_path: Path) -> None:
    """stacked: all experts of a layer in one tensor, as published folders have them."""
    library, text = peers.transformers(), peers.build(name)
    kind = type(text).__name__.removesuffix("ForCausalLM")
    fields = {"text_config": text.config.to_dict(), "vision_config": VISION}
    config = getattr(library, f"{kind}Config")(**fields, tie_word_embeddings=text.config.tie_word_embeddings)
    whole = getattr(library, f"{kind}ForConditionalGeneration")(config)
    whole.model.language_model.load_state_dict(text.model.state_dict())
    whole.lm_head.load_state_dict(text.lm_head.state_dict())
    peers.write(tmp_path, whole)
    if stacked:
        table = load_file(tmp_path / "model.safetensors")
        kept = {label: x for label, x in table.items() if ".experts." not in label}
        every = {label: x.data for label, x in whole.named_parameters() if ".experts." in label}
        assert (len(kept) < len(table)) == bool(every) == ("moe" in name)
        save_file(kept | every, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    if "tied" in name:
        del config["text_config"]["tie_word_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    told: list[str] = []
    sink = logger.add(told.append, level="INFO", format="{message}")
    model = load(tmp_path, False)
    logger.remove(sink)
    found = texts.logits(model, LONG[:100]).double().log_softmax(-1)
    torch.testing.assert_close(found, peers.logprobs(text, LONG[:100]), rtol=0, atol=1e-4)
    visual = len(list(whole.model.visual.parameters()))
    assert [line.strip() for line in told if "text alone" in line or "multi-token" in line] == [
        f"{tmp_path}: text alone runs, and {visual} other tensors do not",
        f"{tmp_path} has no layer for multi-token prediction",
    ]
    assert model.config.eos_ids == (2,) and read_settings(tmp_path).eos_ids == {2}


def test_stacked_experts_of_the_layer_that_drafts_are_read(tmp_path: Path) -> None:
    own, prefix = table(), "mtp.layers.0.mlp.experts"
    kept = {label: weight for label, weight in own.items() if not label.startswith(prefix)}
    gates, ups, downs = (
        torch.stack([own[f"{prefix}.{e}.{side}_proj.weight"] for e in range(CONFIG["num_experts"])])
        for side in ("gate", "up", "down")
    )
    kept |= {f"{prefix}.gate_up_proj": torch.cat((gates, ups), 1), f"{prefix}.down_proj": downs}
    write(tmp_path, CONFIG, kept)
    with floats(tmp_path, ModelConfig.from_folder(tmp_path)) as read_one:
        assert all(read_one(label).equal(weight) for label, weight in own.items())
    assert load(tmp_path, False).mtp is not None


def test_modes_run_half_of_the_experts_or_the_shared_one_alone(tmp_path: Path) -> None:
    config = CONFIG | {"vocab_size": write_marked(tmp_path, QWEN3_5), "num_experts_per_tok": 4}
    write(tmp_path, config, table(config))
    plain, user = HybridReference(tmp_path), [{"role": "user", "content": "hello there"}]
    deep = {"base": "deep", "answer_room": None}
    modes: dict[int, Any] = {2: "fast", 4: deep, 0: deep | {"experts": 0}}
    with open_llm(tmp_path) as llm:
        for count, mode in modes.items():
            outs = [llm.chat(user, GREEDY, mode=mode, speculation=drafter) for drafter in ("off", "mtp", "self")]
            assert [out.metrics.experts for out in outs] == [count] * 3 and outs[0].prompt is not None
            assert llm.tokenizer is not None
            prompt = llm.tokenizer.encode(outs[0].prompt)
            whole = plain.logits([*prompt, *outs[0].token_ids], count)[len(prompt) - 1 : -1]
            assert all(out.token_ids == whole.argmax(-1).tolist() for out in outs)


ROPE = {"mrope_interleaved": True, "mrope_section": [11, 11, 10], "rope_type": "default"}
ROPE |= {"rope_theta": 10000000, "partial_rotary_factor": 0.25}
TYPES = (["linear_attention"] * 3 + ["full_attention"]) * 6
TEXT: dict[str, Any] = {  # as files of Qwen3.5-0.8B say it
    "attention_bias": False, "attention_dropout": 0.0, "attn_output_gate": True, "dtype": "bfloat16",
    "eos_token_id": 248044, "full_attention_interval": 4, "head_dim": 256, "hidden_act": "silu", "hidden_size": 1024,
    "initializer_range": 0.02, "intermediate_size": 3584, "layer_types": TYPES, "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 16,
    "linear_value_head_dim": 128, "mamba_ssm_dtype": "float32", "max_position_embeddings": 262144,
    "mlp_only_layers": [], "model_type": "qwen3_5_text", "mtp_num_hidden_layers": 1,
    "mtp_use_dedicated_embeddings": False, "num_attention_heads": 8, "num_hidden_layers": 24,
    "num_key_value_heads": 2, "output_gate_type": "swish", "rms_norm_eps": 1e-06, "tie_word_embeddings": True,
    "use_cache": True, "vocab_size": 248320, "rope_parameters": ROPE,
}  # fmt: skip
PUBLISHED: dict[str, Any] = {
    "architectures": ["Qwen3_5ForConditionalGeneration"], "image_token_id": 248056, "language_model_only": False,
    "model_type": "qwen3_5", "text_config": TEXT, "tie_word_embeddings": True, "transformers_version": "4.57.0.dev0",
    "video_token_id": 248057, "vision_config": VISION, "vision_end_token_id": 248054,
    "vision_start_token_id": 248053,
}  # fmt: skip
EXPERTS = {"num_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 512}
EXPERTS |= {"shared_expert_intermediate_size": 512}


def read(**fields: Any) -> ModelConfig:
    return ModelConfig.from_json(PUBLISHED | {"text_config": TEXT | fields})


def test_a_published_config() -> None:
    config, mixers = read(), [layer.mixer for layer in read().layers]
    assert mixers[0] == GatedDelta(16, 16, 128, 128) and len(mixers) == 24
    attending = [n for n, mixer in enumerate(mixers) if isinstance(mixer, GroupedAttention)]
    assert attending == [3, 7, 11, 15, 19, 23] and config.tie_word_embeddings and config.mtp is not None
    assert config.ropes[0].width == 64
    assert read(layer_types=None) == config and read(mtp_num_hidden_layers=0).mtp is None
    assert not ModelConfig.from_json(PUBLISHED | {"tie_word_embeddings": False}).tie_word_embeddings
    with_experts = PUBLISHED | {"architectures": ["Qwen3_5MoeForConditionalGeneration"]}
    moe = ModelConfig.from_json(with_experts | {"text_config": TEXT | EXPERTS})
    assert RoutedUnits.of(moe) == ("experts", 8, 0)


@pytest.mark.parametrize(("fields", "said"), [
    ({"linear_num_value_heads": 24}, "linear_num_value_heads 24 must be a multiple of linear_num_key_heads 16"),
    ({"linear_num_key_heads": 0}, "linear_num_key_heads 0 must be a whole number of at least 1"),
    ({"linear_key_head_dim": 0}, "linear_key_head_dim 0 must be a whole number of at least 1"),
    ({"linear_value_head_dim": -1}, "linear_value_head_dim -1 must be a whole number of at least 1"),
    ({"linear_conv_kernel_dim": 1}, "linear_conv_kernel_dim 1 must be at least 2"),
    ({"linear_conv_kernel_dim": 4096}, "linear_conv_kernel_dim 4096 must be at most 1024"),
    ({"num_key_value_heads": 3}, "num_attention_heads 8 must be a multiple of num_key_value_heads 3"),
    ({"layer_types": TYPES[:5]}, "layer_types .* must be a list of 24 types"),
    ({"layer_types": ["mamba"] * 24}, "layer_types has 'mamba', which is not one of linear_attention, full_attention"),
    ({"layer_types": [[]] * 24}, "which is not one of linear_attention, full_attention"),
    ({"full_attention_interval": 0}, "full_attention_interval 0 must be a whole number of at least 1"),
    ({"mtp_num_hidden_layers": 2}, "mtp_num_hidden_layers 2 must be at most 1"),
    ({"mtp_use_dedicated_embeddings": True}, "mtp_use_dedicated_embeddings true is not supported"),
    ({"output_gate_type": "sigmoid"}, "output_gate_type 'sigmoid' is not supported, only 'swish' is"),
    ({"hidden_act": "gelu_pytorch_tanh"}, "hidden_act 'gelu_pytorch_tanh' is not supported, only 'silu' is"),
    ({"rope_parameters": ROPE | {"partial_rotary_factor": 1.5}}, "partial_rotary_factor 1.5 is not supported"),
    ({"rope_parameters": ROPE | {"partial_rotary_factor": 1e-4}}, "partial_rotary_factor 0.0001 of head_dim 256 must"),
    ({"rope_parameters": ROPE | {"other": 1}}, "rope_parameters.other 1 changes the model in a way"),
    ({"num_experts": 4}, "num_experts 4 changes the model in a way"),
])  # fmt: skip
def test_configs_that_do_not_fit(fields: dict[str, Any], said: str) -> None:
    refused(said, read, **fields)
    refused("text_config must be an object, got 3", ModelConfig.from_json, PUBLISHED | {"text_config": 3})


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    path = peers.write(tmp_path, peers.build("qwen3_next")) / "model.safetensors"
    table, p = load_file(path), "model.layers.0.mlp"
    both = next(label for label in table if label.endswith("in_proj_qkvz.weight"))
    apart = both.replace("in_proj_qkvz", "in_proj_z")
    for change, said in (
        ({apart: torch.zeros(128, 64)}, f"tensor {apart} twice: {both} holds it, too"),
        ({both: torch.zeros(9, 64)}, rf"tensor {both} has shape \[9, 64\], but config.json asks for \[320, 64\]"),
        ({both: None}, f"lacks tensor {both} of shape"),
        ({f"{p}.shared_expert_gate.weight": None}, r"lacks tensor .*shared_expert_gate.weight of shape \[1, 64\]"),
        ({f"{p}.experts.gate_up_proj": torch.zeros(8, 64, 64)}, "weight twice: .*gate_up_proj holds it, too"),
        ({"visual.patch.weight": torch.zeros(2), "other": torch.zeros(2)}, "unexpected tensor other"),
    ):
        save_file({k: x for k, x in (table | change).items() if x is not None}, path, {"format": "pt"})
        refused(said, load_model, tmp_path)
