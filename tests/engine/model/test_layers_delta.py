"""Gated delta nets beside attention and experts, as in Qwen3-Next: cuts, orders of heads, and random requests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import texts
import torch
from family_tools import KERNELS
from hybrid_model import CONFIG, DV, NK, NV, SHORT, HybridReference, table
from layer_fuzz import FEW_AND_MANY, LayerFuzz, load
from torch import Tensor

from fastslow.engine.core.request import Request
from fastslow.engine.model.base import Model, kv_cache_for
from fastslow.engine.rows import Rows, RunningRows, Segment

TOKENS = texts.tokens_of(140, vocab=32)  # longer than a block of attention


def logprobs(model: Model, tokens: list[int], sizes: Sequence[int], groups: int | None = None) -> Tensor:
    """[T, V] of a text alone, in chunks."""
    found = texts.cached_logits(model, kv_cache_for(model, 10, 16), tokens, sizes, groups)
    return found.double().log_softmax(-1)


@pytest.mark.parametrize("kernels", KERNELS)
def test_rows_of_a_tree_are_those_of_their_chains(kernels: bool, tmp_path: Path) -> None:
    """Three rows of a text, then drafted ones in any order of parents: siblings read what their parent left, whatever
    its first child has made of it."""
    model, none = load(tmp_path, CONFIG, table(), "float32", kernels), np.empty(0, dtype=np.int64)

    def found(parents: Sequence[int], tokens: Sequence[int]) -> Tensor:
        depths = list[int]()
        for parent in parents:
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        running = RunningRows(0, none, 0, 3, np.arange(len(tokens)))
        slots = np.arange(len(tokens))
        rows = Segment(tokens, depths, parents, slots, none, outputs=range(len(tokens)), running=running)
        return model.forward(Rows.of([rows]), kv_cache_for(model, 4, 16).storage).logits

    for seed in range(6):
        draws = np.random.default_rng(seed)
        parents = [-1, 0, 1, *(int(draws.integers(2, n)) for n in range(3, 20))]
        parents[3:7] = [2, 3, 3, 4]  # the first child has a child, behind its sibling
        tokens = draws.integers(0, 32, 20).tolist()
        tree = found(parents, tokens)
        for row in range(3, 20):
            path = [row]
            while path[0]:
                path.insert(0, parents[path[0]])
            chain = found(range(-1, len(path) - 1), [tokens[n] for n in path])
            assert torch.equal(tree[row], chain[-1]), (seed, row, parents)


@pytest.mark.parametrize(
    ("dtype", "running", "kernels"),
    [*(("float32", None, kernels) for kernels in KERNELS), *(("float64", n, False) for n in (None, 1, 0))],
)
def test_logprobs_are_the_references(dtype: str, running: int | None, kernels: bool, tmp_path: Path) -> None:
    model = load(tmp_path, CONFIG, table(), dtype, kernels)
    found = logprobs(model, TOKENS, [90, 1, 32, 4, 4, 1, 1, 7], running)
    wanted = HybridReference(tmp_path).logits(TOKENS, running).log_softmax(-1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 if dtype == "float32" else 1e-9)


def tiled(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as GGUF files of Qwen3.5 have them: value heads in turn over key heads, decays and the one of
    norms applied."""
    heads = torch.arange(NV).view(NK, -1).T.flatten()
    values = (heads[:, None] * DV + torch.arange(DV)).flatten()
    keys = own["model.layers.0.linear_attn.in_proj_qkv.weight"].shape[0] - NV * DV
    orders = {"in_proj_z.weight": values, "in_proj_a.weight": heads, "in_proj_b.weight": heads, "dt_bias": heads}
    orders |= dict.fromkeys(("in_proj_qkv.weight", "conv1d.weight"), torch.cat((torch.arange(keys), keys + values)))
    found = {}
    for name, weight in own.items():
        side = name.partition("linear_attn.")[2]
        if side == "A_log":
            found[name.replace("A_log", "decay")] = -weight[heads].exp()
        elif side == "out_proj.weight":
            found[name] = weight[:, values]
        else:
            found[name] = weight[orders[side]] if side in orders else weight + float("norm" in name and not side)
    return found


def test_heads_in_turn_and_applied_decays_are_the_same_model(tmp_path: Path) -> None:
    own, fields = table(), {"value_heads_in_turn": True, "weights_applied": True}
    plain = load(tmp_path / "plain", CONFIG, own, "float64")
    turned = load(tmp_path / "tiled", CONFIG | fields, tiled(own), "float64")
    found, wanted = (logprobs(model, TOKENS, [90, 1, 32, 4, 13]) for model in (turned, plain))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.fixture(scope="module", params=KERNELS, ids=["torch", "kernels"])
def fuzz(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LayerFuzz:
    config = CONFIG if request.param else SHORT  # plain torch takes long
    return LayerFuzz.of(tmp_path_factory.mktemp("delta"), config, table(config), request.param)


def _probe(request: Request) -> Any:
    """Some steps of some requests read further rows behind the last token, as a thought's probe does."""
    rows = (1, 2, 5)[len(request.tokens) % 3]
    asks = (request.id + len(request.tokens)) % 4 == 0
    return SimpleNamespace(rows=[4] * rows, sure=0, draft=[]) if asks else None


@FEW_AND_MANY
def test_answers_are_those_of_plain_decoding(fuzz: LayerFuzz, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Request, "answer_probe", property(_probe))
    fuzz.check(count)
