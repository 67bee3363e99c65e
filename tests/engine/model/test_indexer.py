"""The indexer of sparse attention, on torch and on the CPU kernels: texts longer than what a row may see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import peer_models as peers
import pytest
import texts
import torch
from checkpoints import DENSE, tensors, write
from family_tools import KERNELS, LONG, check_however_cut, load
from layer_fuzz import LayerFuzz

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.mixers.latent import LatentAttention

SHARING = ["full", "full", "shared", "shared"]
LATENT = {**peers.LATENT, "head_dim": None, "norm_topk_prob": True, "num_key_value_heads": 4}
CONFIG: dict[str, Any] = {
    **DENSE, **LATENT, "architectures": ["GlmMoeDsaForCausalLM"], "num_hidden_layers": 4, "vocab_size": 32,
    "first_k_dense_replace": 4, "index_topk": 8, "index_n_heads": 5, "index_head_dim": 24, "indexer_types": SHARING, "num_nextn_predict_layers": 1,
}  # fmt: skip
THREE = CONFIG | {"num_hidden_layers": 3, "first_k_dense_replace": 3, "indexer_types": SHARING[:3]}
EACH = pytest.mark.parametrize("kernels", KERNELS)


@EACH
@pytest.mark.parametrize("name", ["deepseek_v32 chosen", "glm dsa chosen"])
def test_logprobs_are_those_of_transformers_however_a_text_is_cut(name: str, kernels: bool, tmp_path: Path) -> None:
    theirs = peers.build(name, max_position_embeddings=1024)
    check_however_cut(load(peers.write(tmp_path, theirs), kernels), peers.logprobs(theirs, LONG), 20)


@pytest.fixture(scope="module", params=KERNELS)
def fuzz(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LayerFuzz:
    return LayerFuzz.of(tmp_path_factory.mktemp("indexed"), THREE, tensors(THREE), kernels=request.param)


@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_answers_are_those_of_plain_decoding(fuzz: LayerFuzz, count: int) -> None:
    """Every drafter, trees, chunks, preempted requests and cached prefixes, over texts beyond 8 tokens."""
    fuzz.check(count)


@EACH
def test_of_equal_scores_the_earlier_token_is_seen(kernels: bool, tmp_path: Path) -> None:
    """All scores are 0: rows see the first tokens alone, and what lies between changes nothing."""
    table = tensors(CONFIG)
    for name, x in table.items():
        if name.endswith("weights_proj.weight"):
            x.zero_()
    model = load(write(tmp_path, CONFIG, table), kernels)
    tokens = texts.tokens_of(300, vocab=32)
    other = [*tokens[:8], *reversed(tokens[8:-1]), tokens[-1]]
    first, second = (texts.logits(model, some) for some in (tokens, other))
    assert torch.equal(first[-1], second[-1]) and torch.equal(first[:8], second[:8])
    assert not torch.equal(first[20:-1], second[20:-1])


@EACH
def test_texts_that_are_not_longer_have_the_bits_of_dense_attention(kernels: bool, tmp_path: Path) -> None:
    model = load(write(tmp_path, CONFIG | {"index_topk": 40}, tensors(CONFIG)), kernels)
    dense = load(write(tmp_path, CONFIG | {"index_topk": 500}, tensors(CONFIG)), kernels)
    tokens = texts.tokens_of(60, vocab=32)
    first, second = (texts.logits(m, tokens, [33, 9, 18]) for m in (model, dense))
    assert torch.equal(first[:40], second[:40]) and not torch.equal(first[40:], second[40:])


def _mixers(**fields: Any) -> list[LatentAttention]:
    layers = ModelConfig.from_json(CONFIG | {"indexer_types": None} | fields).layers
    return [layer.mixer for layer in layers if isinstance(layer.mixer, LatentAttention)]


def test_layers_that_share_a_choice() -> None:
    one, other = _mixers(index_topk_pattern="FFSS"), _mixers(index_topk_freq=2)
    assert one == _mixers(indexer_types=SHARING) == _mixers(index_topk_pattern=SHARING)
    assert [x.rows.beside for x in one] == [24, 24, 0, 0] and [x.rows.beside for x in other] == [24, 24, 0, 24]
    turned = _mixers(architectures=["DeepseekV32ForCausalLM"])[0].indexer
    assert turned is not None and replace(turned, layout="interleaved-first") == one[0].indexer


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"indexer_types": ["full"]}, r"indexer_types \['full'\] must be a list of 4 types"),
        ({"indexer_types": None, "index_topk_pattern": "FXSS"}, "index_topk_pattern has 'X', which is not one of full, shared"),
        ({"indexer_types": SHARING[::-1]}, "indexer_types begins with shared: there is no choice before it"),
        ({"index_topk": 0}, "index_topk 0 must be a whole number of at least 1"),
        ({"index_head_dim": 8}, "index_head_dim 8 must be even and at least 16, the dims that rotate"),
        ({"q_lora_rank": None}, "q_lora_rank 0 must be at least 1"),
    ],
)  # fmt: skip
def test_configs_that_do_not_fit(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        ModelConfig.from_json(CONFIG | fields)
