"""Drafts of a model's published assistant, which reads the model's own keys and values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import texts
import torch
from engine_tools import Ask, Bench, RandomDraft, Setting, answer
from family_tools import load
from refusals import refused

from fastslow import LLM
from fastslow.draft.mtp.assistant import AssistantDraft
from fastslow.engine.backends.assistant import load_assistant
from fastslow.engine.backends.loader import load_model
from fastslow.engine.families.reading import attending, decoder
from fastslow.engine.model.base import Model, MtpModel
from fastslow.engine.model.family import ConfigJson, Family, register
from fastslow.engine.model.shape import Assistance, DecoderShape, Layer
from fastslow.engine.model.tensors import TOKEN_ORDER
from fastslow.engine.params import SamplingParams
from fastslow.engine.sampling.probs import only_best, probs_at

VOCAB, WINDOW = 96, 12
PROMPTS = [tuple(texts.tokens_of(n, n, VOCAB)) for n in (3, 21, 9, 40)]
GREEDY = SamplingParams(max_tokens=16, ignore_eos=True)
SAMPLED = SamplingParams(max_tokens=16, ignore_eos=True, temperature=0.8)
TARGET: dict[str, Any] = {
    **checkpoints.DENSE, "architectures": ["WindowedForCausalLM"], "num_hidden_layers": 4,
}  # fmt: skip
SMALL: dict[str, Any] = {
    **checkpoints.DENSE, "architectures": ["WindowedAssistantForCausalLM"], "hidden_size": 32,
    "tie_word_embeddings": True,
}  # fmt: skip


def _windowed(raw: ConfigJson, **fields: Any) -> DecoderShape:
    mixer = replace(attending(raw), **fields)

    def one(n: int, layer: Layer) -> Layer:
        return replace(layer, mixer=replace(mixer, window=(n + 1) % 2 * WINDOW))

    return decoder(raw, tied=True).each(one)


def _assistant(raw: ConfigJson) -> DecoderShape:
    return replace(_windowed(raw, shares=-1), assists=Assistance("Windowed", 64, 8, 3))


register(Family(("WindowedForCausalLM",), _windowed), Family(("WindowedAssistantForCausalLM",), _assistant))


def write_assistant(folder: Path, **fields: Any) -> Path:
    config = {**SMALL, **fields}
    table = checkpoints.tensors(config)
    table[TOKEN_ORDER] = torch.randperm(config["vocab_size"], generator=torch.Generator().manual_seed(0))
    return checkpoints.write(folder, config, table)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(tmp_path_factory.mktemp("target"), TARGET, checkpoints.tensors(TARGET))


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_assistant(tmp_path_factory.mktemp("assistant"))


def bench_of(model: Model, own: MtpModel) -> Bench:
    def make(kv: Any, width: int) -> AssistantDraft:
        return AssistantDraft(own, model, kv, probs_at, width, only_best=only_best)

    return Bench(model, {
        "chain": lambda kv: make(kv, 1), "tree": lambda kv: make(kv, 3), "random": lambda kv: RandomDraft(),
    })  # fmt: skip


def test_drafts_change_no_token(target: Path, assistant: Path) -> None:
    """Chains and trees beside other drafters, over chunks, after a prefix hit, and where pages are short."""
    model = load(target, False)
    bench = bench_of(model, load_assistant(assistant, model))
    asks = [Ask(p, GREEDY, name, 5) for p in PROMPTS for name in ("chain", "tree", "random", "off")]
    expected = [answer(bench.alone(ask)) for ask in asks]
    for setting, warm in ((Setting(prompt_rows=16), ()), (Setting(), asks[::3]), (Setting(pages=40), ())):
        requests = bench.run(asks, setting, warm)
        assert [answer(r) for r in requests] == expected
    assert any(r.spec_stats.preemptions for r in requests)
    assert all(r.spec_stats.drafted > 10 for r in requests[::4])
    seeded = [Ask(p, SAMPLED, "chain", 3, rule="reproducible", seed=n) for n, p in enumerate(PROMPTS)]
    assert [answer(r) for r in bench.run(seeded)] == [answer(bench.alone(ask)) for ask in seeded]


def test_over_the_public_face(target: Path, assistant: Path) -> None:
    """Named like a head, by itself and in auto."""
    with LLM(target, kv_memory="8MiB", quantization="none", dtype="float64") as llm:
        plain = llm.generate([list(PROMPTS[1])], GREEDY, speculation="off")[0]
        for wish in ({"drafter": "head", "nodes": 3}, {"drafter": "auto"}):
            wish |= {"head": str(assistant)}
            out = llm.generate([list(PROMPTS[1])], GREEDY, speculation=wish)[0]
            assert out.token_ids == plain.token_ids
            assert out.metrics.drafted > 0 or wish["drafter"] == "auto"


@pytest.mark.parametrize(("fields", "said"), [
    ({"vocab_size": 104}, "vocab_size 104, and this one has 96"),
    ({"num_key_value_heads": 4}, "kv_heads of layer 0 4, and this one has 2"),
    ({"head_dim": 24}, "head_dim of layer 0 24, and this one has 16"),
])  # fmt: skip
def test_pairs_that_do_not_fit(fields: dict[str, Any], said: str, target: Path, tmp_path: Path) -> None:
    model = load(target, False)
    refused(f"drafts for a model with {said}$", load_assistant, write_assistant(tmp_path, **fields), model)


def test_what_is_no_pair(target: Path, assistant: Path, tmp_path: Path) -> None:
    other = checkpoints.write(tmp_path, checkpoints.DENSE, checkpoints.tensors(checkpoints.DENSE))
    refused("is no assistant that drafts for LlamaForCausalLM$", load_assistant, assistant, load(other, False))
    refused("does not run alone: give it as head$", load_model, assistant)
    refused("runs beside a model on plain torch, not CpuDecoder", load_assistant, assistant, load(target, True))
