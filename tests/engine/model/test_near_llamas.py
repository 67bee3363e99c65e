"""Dense models that differ from Llama in a few fields, against transformers' own classes."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import family_files as files
import peer_models as peers
import pytest
import texts
import torch
from checkpoints import tensors
from family_tools import KERNELS, LONG, load
from layer_fuzz import FEW_AND_MANY, LayerFuzz
from safetensors.torch import save_file
from torch import Tensor

from fastslow.engine.model.base import Model
from fastslow.engine.model.config import ModelConfig

FIRST = tuple({kind: name for name, (kind, _) in reversed(peers.NEAR.items())}.values())
SHAPES = [pytest.param(name, marks=() if name in FIRST else pytest.mark.slow) for name in peers.NEAR]


def made(folder: Path, name: str, kernels: bool, **fields: Any) -> tuple[Model, Any]:
    """Our model, and that of transformers."""
    theirs = peers.build(name, **{"max_position_embeddings": 1024, **fields})
    peers.write(folder, theirs)
    if name == "mimo":  # Qwen2, but for a layer that drafts
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"architectures": ["MiMoForCausalLM"]}))
    return load(folder, kernels), theirs


def near(found: Tensor, wanted: Tensor) -> None:
    assert wanted.std() > 1
    torch.testing.assert_close(found.double().log_softmax(-1), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", SHAPES)
def test_logprobs_are_those_of_transformers(name: str, kernels: bool, tmp_path: Path) -> None:
    """In one chunk, and to the same bits in several and token by token at the end."""
    model, theirs = made(tmp_path, name, kernels)
    whole = texts.logits(model, LONG, max_len=600)
    near(whole, peers.logprobs(theirs, LONG))
    assert texts.logits(model, LONG, [37, 200, 343] + [1] * 20, max_len=600).equal(whole)


UNSAID = {"architecture", "bos_id", "eos_ids", "renames", "fused", "left_out"}


@pytest.mark.parametrize("name", files.NEAR)
def test_a_gguf_file_is_the_folder_that_it_was_made_from(tmp_path: Path, name: str) -> None:
    folder, file = files.near(tmp_path, name)
    ours, theirs = ModelConfig.from_folder(file), ModelConfig.from_folder(folder)
    different = {f.name for f in fields(ours) if getattr(ours, f.name) != getattr(theirs, f.name)}
    assert different <= UNSAID | ({"layers", "ropes"} if name in ("Ernie4_5", "HunYuanDenseV1") else set())
    tokens = texts.tokens_of(80)
    found, wanted = (texts.logits(load(path, False), tokens, max_len=80) for path in (file, folder))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0 if different <= UNSAID else 1e-5)


SHORT = {"factor": 4.0, "original_max_position_embeddings": 16, "rope_type": "yarn"}
KINDS: dict[str, dict[str, Any]] = {  # each new kind of arithmetic, at lengths of 20 to 80 tokens
    "Granite": peers.SCALED,
    "HunYuanDenseV1": {"rope_scaling": files.ALPHA},
    "Olmo3": {**files.LOCAL, "rope_scaling": SHORT},
    "Ministral3": {"rope_scaling": {**SHORT, **peers.BETA}},
    "Phi3": {"original_max_position_embeddings": 40, "rope_scaling": files.LONGROPE, "partial_rotary_factor": 0.75},
}


EVERY = [
    pytest.param((name, kernels), marks=() if kernels else pytest.mark.slow) for name in KINDS for kernels in KERNELS
]


@pytest.fixture(scope="module", params=EVERY, ids=str)
def fuzz(request: Any, tmp_path_factory: pytest.TempPathFactory) -> LayerFuzz:
    name, kernels = request.param
    config = {**files.BASE, "vocab_size": 32, "architectures": [f"{name}ForCausalLM"], **KINDS[name]}
    return LayerFuzz.of(tmp_path_factory.mktemp(name), config, tensors(config), kernels)


@FEW_AND_MANY
def test_answers_are_those_of_plain_decoding(fuzz: LayerFuzz, count: int) -> None:
    fuzz.check(count)


def test_the_text_part_of_a_model_for_images(tmp_path: Path) -> None:
    """Its tensors have longer names, old or new, and those for images are left out."""
    folder, _ = files.near(tmp_path, "Ministral3")
    config = json.loads((folder / "config.json").read_text())
    whole = {"architectures": ["Mistral3ForConditionalGeneration"], "text_config": config, "vision_config": {"a": 1}}
    spelled = {
        "old": {"model.": "language_model.model.", "lm_head.": "language_model.lm_head."},
        "new": {"model.": "model.language_model.", "lm_head.": "lm_head."},
    }
    for form, images in (("old", "vision_tower.x"), ("new", "model.vision_tower.x")):
        each = [(old, new, n, x) for n, x in tensors(config).items() for old, new in spelled[form].items()]
        table = {new + n.removeprefix(old): x for old, new, n, x in each if n.startswith(old)}
        path = tmp_path / form
        path.mkdir()
        save_file({**table, images: torch.zeros(3)}, path / "model.safetensors")
        (path / "config.json").write_text(json.dumps(whole))
        found, wanted = (texts.logits(load(x, False), LONG[:40]) for x in (path, folder))
        assert found.equal(wanted)


def test_longrope_is_that_of_what_a_request_may_become(tmp_path: Path) -> None:
    """A text within the length before scaling has other keys where it may grow beyond."""
    model, theirs = made(tmp_path, "phi3 long", False)
    rope, tokens = model.config.rope_length, LONG[:256]
    assert rope(2) == rope(256) != rope(257) == rope(1000)
    near(texts.logits(model, tokens, max_len=256), peers.logprobs(theirs, tokens))
    grown = texts.logits(model, tokens, max_len=257)
    assert grown.equal(texts.logits(model, LONG, max_len=600)[:256])
    assert not torch.allclose(grown, texts.logits(model, tokens, max_len=256), atol=0.1)


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("GraniteMoeHybrid", {"layer_types": ["attention", "mamba", "attention", "attention"]}, "it has Mamba layers"),
        (
            "GraniteMoeHybrid",
            {"layer_types": ["attention"] * 4, "num_local_experts": 4},
            "num_local_experts 4 is not su",
        ),
        ("Granite", {"residual_multiplier": -1.0}, "residual_multiplier -1.0 must be a finite number above 0"),
        ("Phi3", {"rope_scaling": files.LONGROPE}, "6 factors, but half a head of 16 rotates"),
        ("Phi3", {"rope_scaling": {**files.LONGROPE, "other": 3}}, "rope_scaling.other 3 changes the model"),
        ("Phi3", {"full_attn_mod": 2}, "full_attn_mod 2 is not supported, only 1 is"),
        ("Llama", {"rope_scaling": files.ALPHA}, "rope_scaling.alpha 50.0 changes the model"),
        ("HunYuanDenseV1", {"head_dim": 2}, "head_dim 2 must be an even number of at least 4"),
        (
            "Phi3",
            {"partial_rotary_factor": 0.13, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "at least 4 dims",
        ),
        ("HunYuanDenseV1", {"rope_scaling": {**files.ALPHA, "alpha": -2}}, "alpha -2 must be a finite number above 0"),
        (
            "Exaone4",
            {"sliding_window": 9, "sliding_window_pattern": "LX"},
            "sliding_window_pattern 'LX' must be a whole",
        ),
        ("MiMo", {"attention_bias": False}, "attention_bias false is not supported"),
        ("MiMo", {"num_nextn_predict_layers": 2}, "num_nextn_predict_layers 2 must be at most 1"),
    ],
)
def test_configs_that_do_not_fit(name: str, fields: dict[str, Any], said: str) -> None:
    usual = {"original_max_position_embeddings": 64} if name == "Phi3" else {}
    with pytest.raises(ValueError, match=said) as caught:
        ModelConfig.from_json({**files.BASE, "architectures": [f"{name}ForCausalLM"], **usual, **fields})
    assert "\n" not in str(caught.value)
