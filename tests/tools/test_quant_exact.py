"""Whatever drafts, a W8A8 model says what it says alone: keys and values in int8, heads, exports of V2."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoints
import numpy as np
import pangu_v2_tools
import pytest
import texts
import torch
from engine_tools import (
    Ask,
    Bench,
    OracleDraft,
    RandomDraft,
    Setting,
    answer,
    cache_for,
    write_kin,
)
from head_tools import tiny_weights, write_head
from kernel_tools import compiled
from quant_tools import export, quantised
from safetensors.torch import load_file

from fastslow import LLM, SamplingParams, Speculation
from fastslow.draft.head.mtp import has_mtp_layer, load_mtp
from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import BorrowedKV, OwnKV
from fastslow.draft.ngram import NgramDraft
from fastslow.draft.several import FallbackDrafter
from fastslow.engine.backends.cpu.kv import Int8Tiles
from fastslow.engine.backends.loader import load_model
from fastslow.engine.sampling.probs import only_best, probs_at

VOCAB = 320
PROMPTS = [tuple(np.random.default_rng(n).integers(5, VOCAB, n).tolist()) for n in (3, 21, 9, 14)]
SETTINGS = (Setting(), Setting(prompt_rows=5), Setting(pages=16, max_running=3))
IDS = [[5, 6, 7, 5, 6], [9], [3, 4, 5, 6, 7, 8, 9, 10, 11]]
PARAMS = SamplingParams(max_tokens=20, ignore_eos=True)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("w8a8")
    target = write_kin(folder / "float", routed=0.3, vocab_size=VOCAB)
    kin = write_kin(folder / "kin", jitter=0.04, routed=0.3, vocab_size=VOCAB)
    made = [quantised(path, folder / f"{path.name}-w8a8", kv=True) for path in (target, kin)]
    model, small = (load_model(path, quantization="auto") for path in made)
    assert model.storage is Int8Tiles and model.storage is small.storage
    shallow = model.layer_subset([0])

    def ngram() -> NgramDraft:
        return NgramDraft(longest=3, shortest=1)

    return Bench(
        model,
        {
            "ngram": lambda kv: ngram(),
            "model": lambda kv: ModelDraft(
                small, OwnKV(cache_for(small)), probs_at, only_best=only_best
            ),
            "tree": lambda kv: ModelDraft(small, OwnKV(cache_for(small)), probs_at, width=3),
            "skip": lambda kv: ModelDraft(shallow, BorrowedKV(kv), probs_at),
            "self": lambda kv: ModelDraft(model, BorrowedKV(kv), probs_at, 0),
            "self tree": lambda kv: ModelDraft(model, BorrowedKV(kv), probs_at, 1, width=2),
            "ngram+self": lambda kv: FallbackDrafter(
                ngram(), ModelDraft(model, BorrowedKV(kv), probs_at, 0)
            ),
            "random": lambda kv: RandomDraft(),
        },
    )


@compiled
@pytest.mark.parametrize("setting", SETTINGS[:2])
def test_every_drafter_says_what_plain_decoding_says(bench: Bench, setting: Setting) -> None:
    """All in one batch, of unlike modes and lengths."""
    params, names = SamplingParams(max_tokens=16), list(bench.drafters)
    asks = [
        Ask(prompt, params, names[(n + shift) % len(names)], groups=(None, 2, 0)[n % 3], seed=n)
        for shift in range(0, len(names), 2)
        for n, prompt in enumerate(PROMPTS)
    ]
    assert {ask.drafter for ask in asks} == set(names)
    requests = bench.run(asks, setting)
    for ask, request in zip(asks, requests, strict=True):
        assert answer(request) == answer(bench.alone(ask)), ask.drafter
    assert sum(request.spec_stats.accepted for request in requests) > 20


@compiled
def test_accepted_rows_that_move_keep_their_bits(bench: Bench) -> None:
    """Forked trees are accepted past their leaves, so that keys and values move; pages are few."""
    params = SamplingParams(max_tokens=24)
    asks = [Ask(prompt, params, "forked", seed=n) for n, prompt in enumerate(PROMPTS)]
    known = {n: bench.alone(ask).tokens for n, ask in enumerate(asks)}
    bench.drafters["forked"] = lambda kv: OracleDraft(known, lambda p: p % 7 == 0, forked=True)
    for setting in SETTINGS:
        requests = bench.run(asks, setting)
        for ask, request in zip(asks, requests, strict=True):
            assert answer(request) == answer(bench.alone(ask))
        assert sum(request.spec_stats.accepted for request in requests) > 20


@pytest.mark.parametrize("bits", ["W8A8_DYNAMIC", "W8A8"])
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_exports_of_v2_run_and_draft_with_their_own_layer(
    tmp_path: Path, bits: str, layers: int
) -> None:
    plain = pangu_v2_tools.write_moe(tmp_path / "float", num_mtp_layers=layers, num_hidden_layers=2)
    folder = export(plain, tmp_path / "w8a8", bits)
    tokens = texts.tokens_of(30)
    found = texts.logits(load_model(folder, quantization="auto"), tokens)
    near = texts.logits(load_model(folder, "float32"), tokens)  # multiplied out
    exact = texts.logits(load_model(plain), tokens)
    assert (near - exact).abs().mean() < 0.1 * exact.std()
    assert 0 < (found - near).abs().mean() < 0.1 * exact.std()
    assert has_mtp_layer(folder) is (layers > 0)
    with LLM(folder, kv_memory="8MiB") as llm:
        assert llm.has_head is (layers > 0)
        said = [o.token_ids for o in llm.generate(IDS, PARAMS, speculation="off")]
        if layers:
            asked = Speculation(drafter="head", nodes=3)
            outs = llm.generate(IDS, PARAMS, speculation=asked)
            assert [o.token_ids for o in outs] == said
            assert sum(o.metrics.drafted for o in outs) > 0
            layer = load_mtp(folder, torch.float32)._layer.entry
            own = load_mtp(plain, torch.float32)._layer.entry
            torch.testing.assert_close(layer.to_dense(), own.to_dense(), atol=0.05, rtol=0.05)


def test_exports_of_v2_in_the_other_spelling(tmp_path: Path) -> None:
    """Its description names tensors as its files do."""
    plain = pangu_v2_tools.write_moe(tmp_path / "float", num_hidden_layers=2)
    folder = export(plain, tmp_path / "w8a8")
    wanted = texts.logits(load_model(folder, quantization="auto"), texts.tokens_of(9))

    def spelled(name: str) -> str:
        return name.replace("shared_experts", "shared_expert").replace("gate.e_score", "e_score")

    table = load_file(folder / "quant_model_weight_w8a8.safetensors")
    config, description = (
        json.loads((folder / "config.json").read_text()),
        "quant_model_description.json",
    )
    other = checkpoints.write(
        tmp_path / "other", config, {spelled(name): tensor for name, tensor in table.items()}
    )
    described = json.loads((folder / description).read_text())
    renamed = {spelled(name): kind for name, kind in described.items()}
    (other / description).write_text(json.dumps(renamed))
    found = texts.logits(load_model(other, quantization="auto"), texts.tokens_of(9))
    assert torch.equal(found, wanted)


def test_a_head_drafts_for_a_quantised_target(tmp_path: Path) -> None:
    plain = checkpoints.write_moge(tmp_path / "float")
    w8a8 = quantised(plain, tmp_path / "w8a8", embedding="int8")
    head = write_head(tmp_path / "head.safetensors", *tiny_weights(w8a8))
    with LLM(w8a8, kv_memory="8MiB") as llm:
        said = [o.token_ids for o in llm.generate(IDS, PARAMS, speculation="off")]
        asked = Speculation(drafter="head", head=str(head), nodes=3)
        outs = llm.generate(IDS, PARAMS, speculation=asked)
        assert [o.token_ids for o in outs] == said and sum(o.metrics.drafted for o in outs) > 0
