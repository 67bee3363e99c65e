"""openPangu Pro MoE V2 against an independent, naive model, and its draft layer in the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import texts
import torch
from checkpoints import write
from pangu_v2_tools import MOE, tensors, write_moe
from reference_model import ReferenceModel
from typer.testing import CliRunner

from fastslow import LLM, SamplingParams, Speculation
from fastslow.draft.head.layer import HeadKV
from fastslow.draft.head.mtp import load_mtp
from fastslow.draft.head.state import RequestVocab
from fastslow.engine.backends.loader import load_model
from fastslow.tools.cli.app import app

VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "no sinks": {"param_sink_number": 0},
    "sinks of zero value": {"param_sink_with_value": False},
    "no sandwich": {"sandwich_norm": False},
    "no bias, no norm": {"router_enable_expert_bias": False, "norm_topk_prob": False},
    "halves last": {"rotary_layout": "halves-last"},
    "all rotated": {"qk_nope_dim": 8, "qk_rope_dim": 16, "rotary_layout": "halves-last"},
    "many sinks": {"param_sink_number": 130},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_probabilities_are_the_references(tmp_path: Path, name: str) -> None:
    folder = write_moe(tmp_path, **VARIANTS[name])
    tokens = texts.tokens_of(13)
    expected = ReferenceModel(folder).logits(tokens).log_softmax(-1)
    got = texts.logits(load_model(folder, "float32"), tokens).double().log_softmax(-1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    exact = texts.logits(load_model(folder, "float64"), tokens).log_softmax(-1)
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("normed", [True, False])
def test_the_best_of_fewer_experts(tmp_path: Path, normed: bool) -> None:
    folder = write_moe(tmp_path, norm_topk_prob=normed)
    model, plain, tokens = load_model(folder, "float32"), ReferenceModel(folder), texts.tokens_of(9)
    found = []
    for count in (None, 0, 1, 2, 3, 9):
        logits = texts.logits(model, tokens, groups=count).double()
        expected = plain.logits(tokens, count).log_softmax(-1)
        torch.testing.assert_close(logits.log_softmax(-1), expected, rtol=0, atol=1e-4)
        found.append(logits)
    assert torch.equal(found[0], found[4]) and torch.equal(found[0], found[5]), "all is all"
    assert len({float(logits[-1, 0]) for logits in found[:4]}) == 4


def test_inspect_names_its_experts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MOE))
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path)]).output
    assert "best 3 of 10, each of 32; shared 64; dense layers: 1" in shown
    assert " dense " not in shown.split("description")[1]


VOCAB = 24
FIELDS: dict[str, Any] = {"vocab_size": VOCAB, "num_hidden_layers": 2}
PROMPTS = [tuple(np.random.default_rng(n).integers(3, VOCAB, n).tolist()) for n in (3, 21, 9, 14)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_moe(tmp_path_factory.mktemp("moe") / "target", **FIELDS)


def test_the_head_is_the_predictor_of_the_reference(folder: Path) -> None:
    """Its logits equal the layer run plainly, after the target's own hidden states."""
    plain = ReferenceModel(folder)
    tokens = list(PROMPTS[2])
    head = load_mtp(folder, torch.float32)
    features = plain.hidden(tokens).float()
    hidden = head.read(features[:-1], tokens[1:], [HeadKV(head.config, 0)], [len(tokens) - 1])
    got = head.logits(hidden, [RequestVocab(head.vocab)], [1])[0][0].double().log_softmax(-1)
    torch.testing.assert_close(got, _predicted(plain, tokens), rtol=0, atol=1e-4)


def test_head_names_the_checkpoints_own_layer(folder: Path) -> None:
    params = SamplingParams(max_tokens=16, ignore_eos=True)
    prompts = [list(prompt) for prompt in PROMPTS]
    with LLM(folder, kv_memory="8MiB") as llm:
        assert llm.has_head
        plain = llm.generate(prompts, params, speculation="off")
        drafted = llm.generate(prompts, params, speculation=Speculation(drafter="head", nodes=3))
    assert [o.token_ids for o in drafted] == [o.token_ids for o in plain]
    assert sum(o.metrics.accepted for o in drafted) > 0


def test_without_the_layer_there_is_no_head(tmp_path: Path) -> None:
    config = {**MOE, **FIELDS}
    table = {n: t for n, t in tensors(config).items() if not n.startswith("model.layers.2.")}
    with LLM(write(tmp_path, config, table), kv_memory="8MiB") as llm:
        assert not llm.has_head
        with pytest.raises(ValueError, match="drafter='head' needs head=PATH"):
            llm.generate([5, 6], speculation="head")


def _predicted(plain: ReferenceModel, tokens: list[int]) -> torch.Tensor:
    """Log-probabilities of the token after the last one, by the draft layer after the plain model."""
    n = plain.config["num_hidden_layers"]
    layer = f"model.layers.{n}"
    before = plain.norm(f"{layer}.hnorm", plain.norm("model.norm", plain.hidden(tokens)[:-1]))
    embedded = plain.tensors["model.embed_tokens.weight"][tokens[1:]]
    pairs = torch.cat((plain.norm(f"{layer}.enorm", embedded), before), -1)
    last = plain.layer(n, plain.linear(f"{layer}.eh_proj", pairs))[-1]
    logits = plain.linear("lm_head", plain.norm(f"{layer}.shared_head.norm", last))
    return logits.log_softmax(-1)
