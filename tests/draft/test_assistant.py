"""Drafts of a model's published assistant, which reads the model's own keys and values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import texts
import torch
from assistant_tools import VOCAB, ReferencePair, bench_of
from engine_tools import Ask, Setting, answer
from family_tools import load
from gguf_gemma import write_gemma
from refusals import refused
from safetensors.torch import load_file, save_file

from fastslow import LLM
from fastslow.engine.backends.assistant import load_assistant
from fastslow.engine.backends.loader import load_model
from fastslow.engine.model.tensors import TOKEN_ORDER
from fastslow.engine.params import SamplingParams

PROMPTS = [tuple(texts.tokens_of(n, n, VOCAB)) for n in (3, 21, 40)]
GREEDY = SamplingParams(max_tokens=10, ignore_eos=True)
SAMPLED = SamplingParams(max_tokens=10, ignore_eos=True, temperature=0.8)
Open = Callable[[bool], ReferencePair]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Open:
    made: dict[bool, ReferencePair] = {}

    def find(clustered: bool) -> ReferencePair:
        if clustered not in made:
            made[clustered] = ReferencePair(tmp_path_factory.mktemp("pair"), clustered)
        return made[clustered]

    return find


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("clustered", [False, True])
def test_drafts_are_the_chains_of_transformers(clustered: bool, kernels: bool, opened: Open) -> None:
    """In a batch, over chunks of prompts, after rejected drafts, within a window and beyond."""
    pair = opened(clustered)
    bench, made = bench_of(pair.target, pair.assistant, kernels)
    bench.run([Ask(prompt, GREEDY, "chain", 4) for prompt in PROMPTS], Setting(prompt_rows=16))
    assert len(made) > 15 and max(len(tree.tokens) for _, tree in made) == 4
    for tokens, tree in made[::2]:
        assert list(tree.tokens) == pair.chain(tokens, len(tree.tokens))


@pytest.mark.parametrize("kernels", [False, True])
def test_drafts_change_no_token(kernels: bool, opened: Open) -> None:
    """Chains and trees beside other drafters, over chunks, after a prefix hit, and where pages are short."""
    bench, _ = bench_of(opened(True).target, opened(True).assistant, kernels)
    asks = [Ask(p, GREEDY, name, 5) for p in PROMPTS for name in ("chain", "tree", "random", "off")]
    expected = [answer(bench.alone(ask)) for ask in asks]
    for setting, warm in ((Setting(prompt_rows=16), ()), (Setting(), asks[::3]), (Setting(pages=28), ())):
        requests = bench.run(asks, setting, warm)
        assert [answer(r) for r in requests] == expected
    assert any(r.spec_stats.preemptions for r in requests)
    assert all(r.spec_stats.drafted > 5 for ask, r in zip(asks, requests) if ask.drafter in ("chain", "tree"))
    seeded = [Ask(p, SAMPLED, "chain", 3, rule="reproducible", seed=n) for n, p in enumerate(PROMPTS)]
    assert [answer(r) for r in bench.run(seeded)] == [answer(bench.alone(ask)) for ask in seeded]


def test_a_file_drafts_as_its_folder(opened: Open, tmp_path: Path) -> None:
    pair = opened(False)
    made = [
        bench_of(pair.target, path, True) for path in (pair.assistant, write_gemma(pair.assistant, tmp_path / "a.gguf"))
    ]
    for bench, _ in made:
        bench.run([Ask(PROMPTS[1], GREEDY, "chain", 4)])
    assert made[0][1] == made[1][1] and made[0][1]


def test_over_the_public_face(opened: Open) -> None:
    """Named like a head, by itself and in auto."""
    pair = opened(True)
    with LLM(pair.target, kv_memory="8MiB", quantization="int4") as llm:
        plain = llm.generate([list(PROMPTS[1])], GREEDY, speculation="off")[0]
        for wish in ({"drafter": "head", "nodes": 3}, {"drafter": "auto"}):
            out = llm.generate([list(PROMPTS[1])], GREEDY, speculation={**wish, "head": str(pair.assistant)})[0]
            assert out.token_ids == plain.token_ids
            assert out.metrics.drafted > 0 or wish["drafter"] == "auto"


@pytest.mark.parametrize(("fields", "said"), [
    ({"vocab_size": 96}, "vocab_size 96, and this one has 64"),
    ({"num_key_value_heads": 4}, "kv_heads of layer 0 4, and this one has 2"),
    ({"head_dim": 32}, "head_dim of layer 0 32, and this one has 16"),
    ({"sliding_window": 32}, "window of layer 0 32, and this one has 16"),
])  # fmt: skip
def test_pairs_that_do_not_fit(fields: dict[str, Any], said: str, opened: Open, tmp_path: Path) -> None:
    model = load(opened(False).target, True)
    refused(f"drafts for a model with {said}$", load_assistant, ReferencePair(tmp_path, **fields).assistant, model)


def test_what_is_no_pair(opened: Open, tmp_path: Path) -> None:
    other = checkpoints.write(tmp_path / "other", checkpoints.DENSE, checkpoints.tensors(checkpoints.DENSE))
    pair = ReferencePair(tmp_path, True)
    refused("is no assistant that drafts for LlamaForCausalLM$", load_assistant, pair.assistant, load(other, False))
    refused("does not run alone: give it as head$", load_model, pair.assistant)
    path, weights = pair.assistant / "config.json", pair.assistant / "model.safetensors"
    config, found = json.loads(path.read_text()), load_file(weights)
    save_file(found | {TOKEN_ORDER: torch.zeros_like(found[TOKEN_ORDER])}, weights, {"format": "pt"})
    for kernels in (False, True):
        refused("must have every token once$", load_assistant, pair.assistant, load(pair.target, kernels))
    path.write_text(json.dumps(config | {"backbone_hidden_size": 64}))
    refused("hidden_size 64, and this one has 48$", load_assistant, pair.assistant, load(pair.target, False))
    path.write_text(json.dumps(config | {"num_centroids": 7}))
    refused("num_centroids 7 must divide vocab_size 64$", load_assistant, pair.assistant, load(pair.target, False))
