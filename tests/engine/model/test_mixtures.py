"""Mixtures of experts: GLM-4.5, ERNIE 4.5; and routers on plain torch and on the kernels."""

from __future__ import annotations

from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import peer_models as peers
import pytest
import texts
import torch
from checkpoints import DENSE, random_table, tensors, write
from engine_tools import Ask, Bench, answer
from family_tools import KERNELS, LONG, check_however_cut, load
from kernel_tools import compiled
from mtp_tools import SpiedMtp
from pairs import pairwise
from safetensors.torch import load_file, save_file

from fastslow.engine.families.reading import attending, decoder
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.family import ConfigJson, Family, register
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.shape import DecoderShape, Layer
from fastslow.engine.params import SamplingParams


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", peers.MIXTURES)
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


@pytest.mark.drafts(20, 0, nodes=None)
@pytest.mark.parametrize("kernels", KERNELS)
def test_drafts_of_glm_are_those_of_transformers(kernels: bool, tmp_path: Path) -> None:
    """Its `generate(use_mtp=True)` drafts one token a step, as the layer does here."""
    text, found = LONG[:12], dict[int, int]()
    peers.write(tmp_path, peers.build("glm groups"))
    own = random_table(ModelConfig.from_folder(tmp_path), 3)
    drafting = {n.replace("shared_expert.", "shared_experts."): x for n, x in own.items() if ".layers.4." in n}
    save_file(load_file(tmp_path / "model.safetensors") | drafting, tmp_path / "model.safetensors", {"format": "pt"})
    theirs = peers.transformers().AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    theirs._keys_to_ignore_on_load_unexpected = [r"model\.layers\.4\..*"]  # as it has those of published sizes
    generator = import_module("transformers.generation.candidate_generator").MTPCandidateGenerator
    proposed = generator.get_candidates

    def noted(self: Any, ids: torch.Tensor, *args: Any, **fields: Any) -> Any:
        more = proposed(self, ids, *args, **fields)
        if more[0].shape[1] > ids.shape[1]:
            found[ids.shape[1]] = int(more[0][0, -1])
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
    (request,) = Bench(model, {"mtp": spy}).run([Ask(tuple(text), params, "mtp", 1)])
    assert answer(request) == ids[0, len(text) :].tolist()
    made = {len(tokens): tree.tokens[0] for tokens, tree in spied[0].made}
    both = made.keys() & found.keys()
    assert len(both) > 30 and {n: made[n] for n in both} == {n: found[n] for n in both}
    assert 0 < request.spec_stats.accepted
