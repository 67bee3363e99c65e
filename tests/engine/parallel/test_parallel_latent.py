"""Latent attention on several ranks: heads and experts are cut, latents are everywhere."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import texts
import torch
from checkpoints import tensors
from latent_models import EVERY
from layer_fuzz import LayerFuzz, load, near
from parallel_tools import ranks, weight_bytes

from fastslow.tools.plan.shards import ShardPlan

SLOW = pytest.mark.slow
PLACES = [
    ("v3", "ep=2", 20),
    *(pytest.param(*x, 20, marks=SLOW) for x in product(("v2", "lite"), ("tp=2", "dp=2,ep=2", "ep=4"))),
    *(pytest.param(*x, 400, marks=SLOW) for x in product(EVERY, ("ep=2", "ep=2,tp=2"))),
]


@pytest.mark.parametrize(("name", "layout", "requests"), PLACES)
def test_ranks_say_what_one_says(name: str, layout: str, requests: int, tmp_path: Path) -> None:
    config, table, tokens = EVERY[name], tensors(EVERY[name]), texts.tokens_of(60, vocab=32)
    kin, plain = load(tmp_path / "kin", config, near(table)), load(tmp_path / "one", config, table)
    with ranks(tmp_path / "one", layout) as model:
        slots = np.arange(60) + (model.storage.dp_ranks - 1) * 60
        for wanted in (None, 1, 0):
            found = texts.logits(model, tokens, [40, *[1] * 4, 16], groups=wanted, slots=slots).log_softmax(-1)
            expected = texts.logits(plain, tokens, groups=wanted).log_softmax(-1)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        plan = ShardPlan.of(model.config, model.parallel, torch.float32)
        assert weight_bytes(model._worker.decoder.weights) == plan.shares[0].weights
        assert texts.storage(model, 64 * model.storage.dp_ranks).nbytes == 64 * plan.shares[0].kv_per_token
        LayerFuzz(model, kin, plain).check(requests)
