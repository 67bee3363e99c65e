"""Load of experts, groups and ranks; and what `inspect` counts."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import texts
import torch
from pangu_v2_tools import write_moe
from tokenizers_tiny import write_bpe
from typer.testing import CliRunner

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.moge import BestOfAll, Moge
from fastslow.tools.cli.app import app
from fastslow.tools.plan.published import KNOWN
from fastslow.tools.routing import (
    RouterWeights,
    Scores,
    grouped,
    load_decoder,
    measure,
    per_rank,
    router_scores,
    ungrouped,
)

GATE = RouterWeights(experts=16, groups=4, chosen=4)


def random_scores(layers: int = 2, prompt: int = 30, answer: int = 9, seed: int = 0) -> Scores:
    """Some experts are liked by all tokens, as in real models."""
    random = torch.Generator().manual_seed(seed)
    liked = torch.randn(layers, 1, 16, generator=random)
    own = torch.randn(layers, prompt + answer, 16, generator=random)
    return Scores(liked + own, prompt)


def test_choices() -> None:
    logits = torch.tensor([[[3.0, 9, 8, 7, 0, 0, 0, 1]]])
    gate = RouterWeights(experts=8, groups=4, chosen=4)
    assert grouped(logits, gate).tolist() == [[[1, 2, 4, 7]]]
    assert sorted(ungrouped(logits, gate)[0, 0].tolist()) == [0, 1, 2, 3]
    assert grouped(logits, RouterWeights(8, 1, 2)).tolist() == [[[1, 2]]]


def test_whole_groups_on_a_rank_are_even_whatever_the_scores() -> None:
    loads = measure([random_scores(seed=n) for n in range(3)], GATE, ranks=4, batch=2)
    for kind, rows in (("prefill", 90), ("decode", 27)):
        ours, best = loads[kind, "MoGE"], loads[kind, "ungrouped"]
        assert ours.rows == best.rows == rows
        assert ours.experts.sum() == best.experts.sum() == 2 * rows * 4
        assert set(ours.deviations) == {0.0} and set(ours.peaks) == {1.0}
        assert (per_rank(ours.experts, 4) == rows).all() and not ours.deviation(4).any()
        assert best.deviation(4).min() > 0 and min(best.peaks) >= 1 and max(best.peaks) > 1
    # 30 rows of each prompt are a step, and nine steps of two answers, nine of the third alone
    assert len(loads["prefill", "MoGE"].deviations) == 2 * 3
    assert len(loads["decode", "MoGE"].deviations) == 2 * 18


def test_half_groups_on_a_rank_are_not() -> None:
    loads = measure([random_scores()], GATE, ranks=8, batch=1)
    assert loads["prefill", "MoGE"].deviation(8).min() > 0
    with pytest.raises(ValueError, match="ranks=3 must divide the 16 experts"):
        measure([random_scores()], GATE, ranks=3, batch=1)


def test_scores_are_the_routers(tmp_path: Path) -> None:
    """What is read off choses the experts that run: the first layer's, whose input is known."""
    folder = checkpoints.write_moge(tmp_path, mlp_only_layers=[1])
    model = load_decoder(folder, progress=False)
    tokens = texts.tokens_of(20)
    plain = texts.logits(model, tokens)
    scores = next(router_scores(model, [(tokens, 12)]))
    assert scores.logits.shape == (2, 20, 16) and scores.prompt == 12
    assert torch.equal(texts.logits(model, tokens), plain)
    ran: list[torch.Tensor] = []
    layer = model.weights.layers[0].mlp
    assert isinstance(layer, Moge)
    layer.watch = lambda x, logits: ran.append(logits)
    texts.logits(model, tokens)
    assert torch.equal(ran[0], scores.logits[0])


def test_the_command(tmp_path: Path) -> None:
    folder = checkpoints.write_moge(tmp_path / "model", vocab=320, num_hidden_layers=2)
    write_bpe(folder, vocab_size=320)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": "say " * n}) for n in (3, 9, 5)))
    asked = ["inspect", str(folder), "--routing", str(prompts), "--ranks", "4", "--answer", "6"]
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 0, shown.exception
    assert "MoGE" in shown.output and "ungrouped" in shown.output
    record = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)
    ours = {load["choice"]: load for load in record["loads"] if load["rows"] == "decode"}
    assert record["groups"] == 4 and set(ours) == {"MoGE", "ungrouped"}
    assert np.array(ours["MoGE"]["tokens_per_rank"]).std(-1).max() == 0
    assert np.array(ours["MoGE"]["tokens_per_expert"]).shape == (2, 16)


def test_a_dense_model_has_no_router_and_one_group_is_shown_too(tmp_path: Path) -> None:
    dense = ModelConfig.from_folder(checkpoints.write_dense(tmp_path / "dense"))
    with pytest.raises(ValueError, match="LlamaForCausalLM is dense"):
        RouterWeights.of(dense)
    folder = write_moe(tmp_path / "moe")
    assert RouterWeights.of(ModelConfig.from_folder(folder)) == RouterWeights(10, 1, 3)
    scores = list(router_scores(load_decoder(folder, False), [([3, 4, 5], 3)]))
    loads = measure(scores, RouterWeights(10, 1, 3), ranks=5, batch=1)
    ours, best = (loads["prefill", router] for router in ("MoGE", "ungrouped"))
    assert (ours.experts == best.experts).all()


def test_the_best_of_all_are_those_that_run(tmp_path: Path) -> None:
    """With the bias that is added for the choice alone."""
    model = load_decoder(write_moe(tmp_path, mlp_only_layers=[]), progress=False)
    mlp = model.weights.layers[0].mlp
    assert isinstance(mlp, BestOfAll) and mlp.scale is not None
    mlp.scale[7] = 5.0
    tokens = texts.tokens_of(20)
    scores = next(router_scores(model, [(tokens, 20)])).logits
    assert (ungrouped(scores, RouterWeights(10, 1, 3))[0] == 7).any(-1).all()


def test_experts_that_no_layer_has_are_not_looked_for(tmp_path: Path) -> None:
    config = ModelConfig.from_folder(checkpoints.write_moge(tmp_path, mlp_only_layers=[0, 1, 2]))
    with pytest.raises(ValueError, match="all layers of this model are dense: they have no router"):
        RouterWeights.of(config)


def test_the_72b_counts_as_arithmetic_has_it(tmp_path: Path) -> None:
    """config.json alone: 71.99 B in all, 16.50 B for a token."""
    (tmp_path / "config.json").write_text(json.dumps(KNOWN["openpangu-pro-moe-72b"]))
    hidden, layers, heads, kv_heads, dim = 5120, 48, 40, 8, 128
    queries, keys = heads * dim, kv_heads * dim
    attention = 2 * hidden * queries + 2 * hidden * keys + (queries + 2 * keys + hidden)  # + biases
    expert, shared = 3 * hidden * 1344, 3 * hidden * 5376
    router = 64 * hidden + 64  # and router_scale
    layer = attention + 2 * hidden + router + shared
    ends = 2 * 153376 * hidden + hidden  # embedding, head, last norm
    total = layers * (layer + 64 * expert) + ends
    active = layers * (layer + 8 * expert) + ends
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path), "--json"])
    record = json.loads(shown.stdout)
    assert record["parameters"] == total == 71_988_781_056
    assert record["modes"]["deep"]["active_parameters"] == active == 16_498_139_136
    assert record["memory"]["bfloat16"]["kv_per_token"] == 2 * 48 * 8 * 128 * 2
    table = CliRunner().invoke(app, ["inspect", str(tmp_path)]).output
    assert all(words in table for words in ("71.99 B", "16.50 B", "8 groups of 8", "token ids"))
