"""Families in the accelerator's decoder: on the GPU's building blocks, and on simulated NPUs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pangu_v2_tools
import pytest
import texts
import torch
from accelerator_tools import CPU, DEVICES, paged, plain
from checkpoints import DENSE, MOGE, random_table
from fake_cuda import RecordingOps
from pairs import pairwise
from torch import Tensor

from fastslow.engine.backends.accelerator import cuda
from fastslow.engine.backends.accelerator.decoder import PagedDecoder
from fastslow.engine.backends.accelerator.ops import PagedOps
from fastslow.engine.backends.alike import grouped
from fastslow.engine.backends.loader import load_model
from fastslow.engine.backends.torch.decoder import Decoder
from fastslow.engine.checkpoint.checkpoint import floats
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.ops import ClampedSwiglu
from fastslow.engine.model.shape import Layer
from fastslow.engine.rows import Rows, Segment

TOKENS = texts.tokens_of(170)
BASE = ModelConfig.from_json({**DENSE, "num_hidden_layers": 3})
NORM, EXPERT = BASE.norm, DenseMlp(32)
SOFTMAX, CHOSEN = Router("softmax", 3), Router("chosen", 3, bias=True)
SIGMOID = Router("sigmoid", 3, scale=2.5, choice_bias=True)
NORMED: dict[str, Any] = {"query_norm": NORM, "key_norm": NORM}


def attention(windows: Sequence[int] = (0, 0, 0), still: int = -1, **fields: Any) -> ModelConfig:
    """BASE with other fields of attention. still: a layer that does not rotate."""

    def one(n: int, layer: Layer) -> Layer:
        own = replace(grouped(layer), window=windows[n], **fields)
        rope = own.rope and replace(own.rope, dim=own.head_dim)
        return replace(layer, mixer=replace(own, rope=None if n == still else rope))

    return BASE.each(one)


def routed(
    base: ModelConfig, router: Router, expert: DenseMlp = EXPERT, shared: int = 0, dense: int = 1
) -> ModelConfig:
    """The same with experts. dense: a layer without; -1: none is."""
    ffn = RoutedExperts(router, 8, expert, DenseMlp(shared) if shared else None)
    return base.each(lambda n, layer: layer if n == dense else replace(layer, ffn=ffn))


FAMILIES: dict[str, ModelConfig] = {
    "moge": ModelConfig.from_json({**MOGE, "mlp_only_layers": [1]}), "head norms": attention(**NORMED, head_dim=32),
    "qkv bias": attention(qkv_bias=True), "windows": attention((24, 24, 24)),
    "windows in turn": attention((0, 140, 7)), "unrotated": replace(attention(still=1), tie_word_embeddings=True),
    "sinks": attention(sink_logits=True), "softmax": routed(attention(**NORMED), SOFTMAX),
    "softmax as it is": routed(BASE, replace(SOFTMAX, normed=False)), "sigmoid": routed(BASE, SIGMOID, shared=32),
    "gpt-oss": routed(
        attention((20, 0, 20), qkv_bias=True, out_bias=True, sink_logits=True), CHOSEN,
        DenseMlp(32, ClampedSwiglu(limit=2.0), bias=True), dense=-1,
    ),
}  # fmt: skip
ROUTED_NAMES = [name for name, config in FAMILIES.items() if config.chosen]


def load(config: ModelConfig, ops: PagedOps, dtype: torch.dtype = torch.float32) -> tuple[PagedDecoder, Decoder]:
    """The model, and plain torch in float64, which `test_families.py` holds against transformers."""
    read = random_table(config).__getitem__
    return paged(config, ops, read, dtype), plain(config, read, torch.float64)


def near(found: Tensor, wanted: Tensor) -> None:
    found, wanted = found.double().log_softmax(-1), wanted.log_softmax(-1)
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits(name: str, ops: PagedOps) -> None:
    model, plain = load(FAMILIES[name], ops)
    wanted = texts.logits(plain, TOKENS)
    scattered = np.random.default_rng(1).permutation(400)[:170]
    near(texts.logits(model, TOKENS, [140, *[1] * 3, 10, *[1] * 2, 15], slots=scattered), wanted)


@pytest.mark.parametrize(("name", "count", "ops"), pairwise(ROUTED_NAMES, (1, 2, 7), DEVICES), indirect=["ops"])
def test_fewer_experts(name: str, count: int, ops: PagedOps) -> None:
    model, plain = load(FAMILIES[name], ops)
    for wanted in (count, 0) if name in ("moge", "sigmoid") else (count,):
        found = texts.logits(model, TOKENS[:24], [20, *[1] * 4], groups=wanted)
        near(found, texts.logits(plain, TOKENS[:24], groups=wanted))


@pytest.mark.parametrize("name", ["moge", "windows", "windows in turn", "sinks", "gpt-oss"])
def test_trees(name: str, ops: PagedOps) -> None:
    check_tree(name, ops)


@pytest.mark.parametrize("bounds", [{"WIDEST": 256, "WIDE": 1}, {"SCORES": 2048}], ids=str)
@pytest.mark.parametrize("name", ["windows in turn", "gpt-oss"])
def test_attention_in_parts_is_attention(name: str, bounds: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Few keys or few products at once."""
    for bound, most in bounds.items():
        monkeypatch.setattr(cuda, bound, most)
    check_tree(name, RecordingOps(CPU))


def check_tree(name: str, ops: PagedOps) -> None:
    """Every node says what its path says alone, with rows of other requests and other counts beside it."""
    model, plain = load(FAMILIES[name], ops)
    known, slots, kv = 137, np.arange(200), texts.storage(model, 512)
    model.forward(Rows.of([texts.chunk(TOKENS, 0, known, slots)]), kv)
    parents, tokens = [-1, 0, 0, 1, 3, 2, 5], TOKENS[known : known + 7]
    places = [known + depth for depth in (0, 1, 1, 2, 3, 2, 3)]
    own = np.array([137, 300, 311, 138, 322, 299, 301])
    tree = Segment(tokens, places, parents, own, slots[:known], None, range(7), 0)
    found = model.forward(Rows.of([tree, texts.chunk(TOKENS, 0, 12, np.arange(384, 396), groups=2)]), kv).logits
    for node in range(7):
        path, at = [], node
        while at >= 0:
            path.append(TOKENS[known + at])
            at = parents[at]
        near(found[node][None], texts.logits(plain, [*TOKENS[:known], *path[::-1]])[-1:])
    near(found[7:], texts.logits(plain, TOKENS[:12], groups=2))


def test_steps_are_recorded(ops: PagedOps) -> None:
    """On a GPU all of them; on an NPU those without windows, and on a 310P those without sinks."""
    for name, chips in (("head norms", 3), ("sinks", 2), ("windows in turn", 1)):
        model, plain = load(FAMILIES[name], ops)
        near(texts.logits(model, TOKENS[:145], [130, *[1] * 15]), texts.logits(plain, TOKENS[:145]))
        assert (model.recorder.replays > 12) == ((not ops.windows) + (not ops.merges) < chips), name


@pytest.mark.parametrize("name", ["softmax", "gpt-oss", "moge"])
def test_mixtures_in_bfloat16_are_recorded(name: str) -> None:
    """Routing, biases and windows wait for nothing on a GPU."""
    model, plain = load(FAMILIES[name], RecordingOps(CPU), torch.bfloat16)
    found = texts.logits(model, TOKENS[:55], [40, *[1] * 15]).double()
    assert model.recorder.replays == 14
    wanted = texts.logits(plain, TOKENS[:55])
    assert (found - wanted).abs().mean() < 0.1 * wanted.std()


V2: dict[str, dict[str, Any]] = {
    "all": {},
    "narrow values": {"v_channels": 8, "rotary_layout": "halves-last"},
    "wide heads": {"qk_nope_dim": 128, "qk_rope_dim": 64, "v_channels": 128},
    "no sinks": {"param_sink_number": 0, "sandwich_norm": False},
    "keys alone": {"param_sink_with_value": False, "router_enable_expert_bias": False},
}


@pytest.mark.parametrize("name", V2)
def test_pangu_v2(name: str, ops: PagedOps, tmp_path: Path) -> None:
    folder = pangu_v2_tools.write_moe(tmp_path, **V2[name])
    config = ModelConfig.from_folder(folder)
    tokens = TOKENS[:50]
    if name == "wide heads" and not ops.merges:
        with pytest.raises(ValueError, match="need head_dim of at most 128, not 192"):
            ops.check(config, torch.float32)
        return
    with floats(folder, config) as read:
        model = paged(config, ops, read)
    cpu = load_model(folder, "float64", "cpu")
    for wanted in (None, 1, 0):
        found = texts.logits(model, tokens, [40, *[1] * 4, 6], groups=wanted)
        near(found, texts.logits(cpu, tokens, groups=wanted).double())
