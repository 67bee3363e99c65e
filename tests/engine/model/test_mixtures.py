"""Mixtures of experts, some with latent attention: GLM, DeepSeek, ERNIE, MiniMax; and routers on plain torch and on the kernels."""

from __future__ import annotations

import re
from dataclasses import asdict, fields, replace
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import family_files as files
import peer_models as peers
import pytest
import texts
import torch
from checkpoints import DENSE, random_table, tensors, write
from engine_tools import Ask, Bench, answer
from family_tools import KERNELS, LONG, check_however_cut, load
from gguf import GGMLQuantizationType
from gguf_tools import setting, write_gguf
from gguf_writer import matrices
from kernel_tools import check_error, compiled
from layer_fuzz import FEW_AND_MANY, LayerFuzz
from mtp_tools import SpiedMtp, on_accelerator
from pairs import pairwise
from refusals import refused
from safetensors.torch import load_file, save_file

from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.cpu.pieces.limits import unsupported
from fastslow.engine.backends.loader import load_model
from fastslow.engine.checkpoint.checkpoint import Checkpoint
from fastslow.engine.checkpoint.identity import model_digest
from fastslow.engine.families.reading import attending, decoder
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import Family, register
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.shape import DecoderShape, Layer
from fastslow.engine.model.tensors import active_parameters, parameters
from fastslow.engine.params import SamplingParams

SHAPES = [pytest.param(name, marks=() if name in peers.FIRST else pytest.mark.slow) for name in peers.MIXTURES]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", SHAPES)
def test_logprobs_are_those_of_transformers_however_a_text_is_cut(name: str, kernels: bool, tmp_path: Path) -> None:
    theirs = peers.build(name, max_position_embeddings=1024)
    model = load(peers.write(tmp_path, theirs), kernels)
    check_however_cut(model, peers.logprobs(theirs, LONG), 20)


def _any_router(raw: ConfigJson) -> DecoderShape:
    router = Router(**raw["router"])
    return decoder(raw, Layer(attending(raw), RoutedExperts(router, 16, DenseMlp(32), DenseMlp(32))))


register(Family(("AnyRouterForCausalLM",), _any_router))
KINDS, GROUPS = ("softmax", "chosen", "sigmoid"), ((0, 0, 2), (4, 2, 2), (4, 3, 1), (8, 3, 3))


@compiled
@pytest.mark.parametrize(
    ("kind", "normed", "biased", "groups", "top_k"), pairwise(KINDS, (True, False), (True, False), GROUPS, (3, 4))
)
def test_equal_experts_and_groups_are_chosen_alike(
    kind: str, normed: bool, biased: bool, groups: tuple[int, int, int], top_k: int, tmp_path: Path
) -> None:
    """On plain torch and on the kernels; an expert, and a group or two, have the scores of another."""
    router = Router(kind, top_k, normed, 1.5, False, biased, *groups)
    config: dict[str, Any] = {**DENSE, "architectures": ["AnyRouterForCausalLM"], "router": asdict(router)}
    table = tensors(config)
    for name, x in table.items():
        if name.endswith(("gate.weight", "correction_bias")):
            x[5], x[8:12], x[14:] = x[3], x[4:8], 0
    folder, tokens = write(tmp_path, config, table), texts.tokens_of(40)
    plain, kernels = load(folder, False), load(folder, True)
    for count in (None, 0, 1, 2):
        found = texts.logits(kernels, tokens, groups=count)
        assert (found - texts.logits(plain, tokens, groups=count)).abs().max() < 1e-3


OF_HEADS = r"model\.layers\.[456]\..*"


@pytest.mark.drafts(20, 0, nodes=None)
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("name", "heads"), [("glm groups", 1), ("deepseek_v3", 1), ("deepseek_v3", 3)])
def test_drafts_are_those_of_transformers(name: str, heads: int, kernels: bool, tmp_path: Path) -> None:
    """Its `generate(use_mtp=True)` drafts one token a step with each layer, as the layers do here."""
    text, found = LONG[:12], dict[int, list[int]]()
    peers.write(tmp_path, peers.build(name, num_mtp_layers=heads))
    own = random_table(ModelConfig.from_folder(tmp_path), 3)
    drafting = {n.replace("shared_expert.", "shared_experts."): x for n, x in own.items() if re.search(OF_HEADS, n)}
    save_file(load_file(tmp_path / "model.safetensors") | drafting, tmp_path / "model.safetensors", {"format": "pt"})
    theirs = peers.transformers().AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    theirs._keys_to_ignore_on_load_unexpected = [OF_HEADS]  # as it has those of published sizes
    generator = import_module("transformers.generation.candidate_generator").MTPCandidateGenerator
    proposed = generator.get_candidates

    def noted(self: Any, ids: torch.Tensor, *args: Any, **fields: Any) -> Any:
        more = proposed(self, ids, *args, **fields)
        if more[0].shape[1] > ids.shape[1]:
            found[ids.shape[1]] = more[0][0, ids.shape[1] :].tolist()
        return more

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator, "get_candidates", noted)
        asked = {"use_mtp": True, "max_new_tokens": 40, "do_sample": False, "eos_token_id": None}
        ids = theirs.generate(torch.tensor([text]), **asked)
    model, spied = load(tmp_path, kernels), list[SpiedMtp]()

    def spy(kv: KVCache) -> SpiedMtp:
        spied.append(SpiedMtp(model, kv))
        return spied[-1]

    params = SamplingParams(max_tokens=40, ignore_eos=True)
    (request,) = Bench(model, {"mtp": spy}).run([Ask(tuple(text), params, "mtp", heads)])
    assert answer(request) == ids[0, len(text) :].tolist()
    made = {len(tokens): list(tree.tokens) for tokens, tree in spied[0].made}
    both = made.keys() & found.keys()
    assert len(both) > 30 - 5 * heads and {n: made[n] for n in both} == {n: found[n][: len(made[n])] for n in both}
    assert max(map(len, made.values())) == heads
    assert request.spec_stats.accepted or name != "glm groups"


UNSAID = ("bos_id", "eos_ids")  # the tokenizer's, which these files have none of


@pytest.mark.parametrize("name", files.MIXTURES)
def test_a_gguf_file_is_the_folder_that_it_was_made_from(tmp_path: Path, name: str) -> None:
    folder, file = files.mixture(tmp_path, name)
    ours, theirs = ModelConfig.from_folder(file), ModelConfig.from_folder(folder)
    unsaid = {*UNSAID, "architecture"} if "latent" in name else {*UNSAID}
    assert {f.name for f in fields(ours) if getattr(ours, f.name) != getattr(theirs, f.name)} <= unsaid
    tokens = texts.tokens_of(40, vocab=64)
    first, second = (load(path, False) for path in (file, folder))
    assert torch.equal(texts.logits(first, tokens), texts.logits(second, tokens))
    assert (first.mtp is None) == (second.mtp is None) == (name not in ("glm", "latent", "latent glm", "latent sparse"))
    apart = any(name.endswith(".k_b_proj.weight") for name in Checkpoint.own(file, ours).files[file])
    assert apart == ("latent" in name and "older" not in name)
    assert apart or model_digest(file) == model_digest(folder)
    if name == "minimax":  # whole heads turn where nothing is said
        bare = write_gguf(folder, file, change=setting("minimax-m2.rope.dimension_count", None))
        assert (ours.ropes[0].width, ModelConfig.from_folder(bare).ropes[0].width) == (8, 0)
    if name == "latent sparse said":
        wrong = write_gguf(folder, file, change=setting("glm-dsa.attention.indexer.types", True))
        refused("indexer_types True must be a list of 3 types", ModelConfig.from_folder, wrong)


FUZZED = [  # plain torch takes long
    pytest.param((name, kernels), marks=() if kernels else pytest.mark.slow, id=f"{name}-{kernels}")
    for name, kernels in product(("glm groups", "ernie", "granite", "hunyuan", "minimax"), KERNELS)
]


@pytest.fixture(scope="module", params=FUZZED)
def fuzz(request: Any, tmp_path_factory: pytest.TempPathFactory) -> LayerFuzz:
    name, kernels = request.param
    config = files.MIXTURES[name.partition(" ")[0]] | {"vocab_size": 32}
    if "groups" in name:
        config |= {"n_group": 4, "topk_group": 2}
    return LayerFuzz.of(tmp_path_factory.mktemp("mixture"), config, tensors(config), kernels)


@FEW_AND_MANY
def test_answers_are_those_of_plain_decoding(fuzz: LayerFuzz, count: int) -> None:
    fuzz.check(count)


@compiled
@pytest.mark.parametrize("name", ["glm", "ernie", "granite", "hunyuan", "minimax"])
def test_a_quantised_file_runs_in_its_own_numbers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All experts run, since a near tie would change more."""
    every = {k: 8 for k in ("num_experts_per_tok", "moe_k", "moe_topk") if k in files.MIXTURES[name]}
    _, file = files.mixture(tmp_path, name, matrices(GGMLQuantizationType.Q8_0), **every)
    model = load_model(file, quantization="auto", progress=False)
    assert isinstance(model, CpuDecoder) and model.formats.name == "gguf-bfloat16"
    check_error(model, file, texts.tokens_of(20, vocab=64), False, monkeypatch)


@pytest.mark.parametrize("name", ["glm groups", "ernie"])
def test_accelerators_choose_the_same_experts(name: str, tmp_path: Path) -> None:
    fields = {"num_mtp_layers": 0} if "glm" in name else {}
    folder = peers.write(tmp_path, peers.build(name, **fields))
    found, wanted = (texts.logits(m, LONG[:60]) for m in (on_accelerator(folder), load(folder, False)))
    torch.testing.assert_close(found.log_softmax(-1), wanted.log_softmax(-1), rtol=0, atol=1e-4)


def _published(name: str, sizes: str, **fields: Any) -> dict[str, Any]:
    """sizes: layers, hidden, heads, heads of keys, vocabulary, width."""
    each = dict(zip(SIZES, map(int, sizes.split()), strict=True))
    rest = {"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "max_position_embeddings": 4096}
    return {"architectures": [f"{name}ForCausalLM"], **rest, **each, **fields}


SIZES = [
    "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size", "intermediate_size"
]  # fmt: skip
# As files of GLM-4.5-Air, ERNIE-4.5-21B-A3B, Granite 3 3B-A800M, Hunyuan-A13B and MiniMax-M2 say it, and how many
# weights each has, and uses for a token.
PUBLISHED: dict[str, tuple[dict[str, Any], float, float]] = {
    "glm": (
        _published(
            "Glm4Moe", "46 4096 96 8 151552 10944", attention_bias=True, eos_token_id=[151329, 151336, 151338],
            head_dim=128, partial_rotary_factor=0.5, moe_intermediate_size=1408, norm_topk_prob=True, n_group=1,
            topk_group=1, n_routed_experts=128, n_shared_experts=1, routed_scaling_factor=1.0, num_experts_per_tok=8,
            first_k_dense_replace=1, num_nextn_predict_layers=1, rope_scaling=None, use_qk_norm=False,
        ), 106.852, 13.424,
    ),
    "ernie": (
        _published(
            "Ernie4_5_Moe", "28 2560 20 4 103424 12288", use_rmsnorm=True, use_bias=False, moe_num_experts=64, moe_k=6,
            moe_num_shared_experts=2, moe_layer_start_index=1, moe_layer_interval=1, moe_intermediate_size=1536,
            moe_capacity=[64, 64, 64], moe_gate="topk", moe_use_aux_free=True, num_nextn_predict_layers=1,
            tie_word_embeddings=True,
        ), 21.825, 3.352,
    ),
    "granite": (
        _published(
            "GraniteMoe", "32 1536 24 8 49155 512", attention_bias=False, attention_multiplier=0.015625,
            embedding_multiplier=12.0, logits_scaling=6.0, num_experts_per_tok=8, num_local_experts=40,
            output_router_logits=False, residual_multiplier=0.22, router_aux_loss_coef=0.001, tie_word_embeddings=True,
        ), 3.299, 0.883,
    ),
    "hunyuan": (
        _published(
            "HunYuanMoEV1", "32 4096 32 8 128167 3072", attention_head_dim=128, group_limited_greedy=False,
            moe_intermediate_size=[3072] * 32, moe_layer_num_skipped=0, moe_topk=[8] * 32, norm_topk_prob=True,
            norm_type="rms", num_experts=64, num_shared_expert=[1] * 32, use_cla=False, use_mixed_mlp_moe=True,
            rope_scaling={"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0,
                          "mscale_all_dim": 1.0, "type": "dynamic"},
            use_qk_norm=True, use_rotary_pos_emb=True, vit_norm_type="fused", tie_word_embeddings=True,
        ), 80.393, 12.747,
    ),
    "minimax": (
        _published(
            "MiniMaxM2", "62 3072 48 8 200064 1536", attn_type_list=[1] * 62, head_dim=128, rotary_dim=64,
            layernorm_mlp_beta=1.0, num_experts_per_tok=8, num_local_experts=256, qk_norm_type="per_layer",
            scoring_func="sigmoid", shared_intermediate_size=0, shared_moe_mode="sigmoid", use_qk_norm=True,
            use_routing_bias=True, use_mtp=True, num_mtp_modules=3,
        ), 228.69, 11.031,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_have_the_sizes_that_are_known(name: str) -> None:
    fields, every, active = PUBLISHED[name]
    config = ModelConfig.from_json(fields)
    counts = [round(count / 1e9, 3) for count in (parameters(config), active_parameters(config))]
    assert counts == [every, active] and unsupported(config) is None
    assert name != "hunyuan" or config.ropes[0].theta == pytest.approx(11158839.925)


def test_a_factor_of_logits_beside_a_layer_that_drafts_goes_to_plain_torch() -> None:
    config = ModelConfig.from_json(PUBLISHED["glm"][0])
    assert config.mtp is not None and "factor of logits" in str(unsupported(replace(config, logit_scale=0.5)))


@pytest.mark.parametrize(("name", "field", "value", "said"), [
    ("glm", "n_group", 3, "n_group 3 must divide the 128 experts"),
    ("ernie", "moe_norm_min", 0.1, "moe_norm_min 0.1 is not supported, it is at most 1e-06"),
    ("ernie", "use_rmsnorm", False, "use_rmsnorm False is not supported, only True is"),
    ("granite", "num_experts_per_tok", 41, "num_experts_per_tok 41 must be at most num_experts 40"),
    ("hunyuan", "moe_topk", [], r"moe_topk \[\] is not supported, only 1 is"),
    ("hunyuan", "moe_topk", [8, 4], r"moe_topk \[8, 4\] is not supported, only 8 is"),
    ("hunyuan", "moe_intermediate_size", [3072, 64], r"moe_intermediate_size \[3072, 64\] is not supported, only 3072 is"),
    ("minimax", "attn_type_list", [1, 0], r"attn_type_list \[1, 0\] is not supported, only 1 is"),
    ("minimax", "rotary_dim", 256, "rotary_dim 256 must be at most 128"),
])  # fmt: skip
def test_configs_that_do_not_fit(name: str, field: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        ModelConfig.from_json(PUBLISHED[name][0] | {field: value})
