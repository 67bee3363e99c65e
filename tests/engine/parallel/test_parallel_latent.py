"""Latent attention on several ranks: heads and experts are cut; latents, streams and convolutions are everywhere. Layers
that draft are divided as others are."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import texts
import torch
from checkpoints import tensors
from latent_models import EVERY, OPENPANGU
from layer_fuzz import LayerFuzz, load, near
from pangu_2_reference import Pangu2
from parallel_tools import check_memory, ranks
from safetensors.torch import load_file
from torch import Tensor

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.parallel.sharding import Parallel, RankShard, usual

SLOW, NAMES = pytest.mark.slow, (*EVERY, "openpangu")
PLACES = [
    ("v3", "tp=2", 10),  # of ranks and of drafts the next one says more
    ("openpangu", "ep=2", 20),
    *(pytest.param(*x, 20, marks=SLOW) for x in product(("v2", "lite"), ("tp=2", "dp=2,ep=2", "ep=4"))),
    *(pytest.param(*x, 100, marks=SLOW) for x in product(NAMES, ("ep=2", "tp=2", "ep=2,tp=2"))),
]


def weights_of(name: str, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Of a tiny model, by its file's names."""
    if name != "openpangu":
        return EVERY[name], tensors(EVERY[name])
    reference = Pangu2(**OPENPANGU)
    return reference.c, load_file(reference.write(folder) / "model.safetensors")


@pytest.mark.parametrize(("name", "layout", "requests"), PLACES)
def test_ranks_say_what_one_says(name: str, layout: str, requests: int, tmp_path: Path) -> None:
    (config, table), tokens = weights_of(name, tmp_path / "made"), texts.tokens_of(60, vocab=32)
    kin, plain = load(tmp_path / "kin", config, near(table)), load(tmp_path / "one", config, table)
    with ranks(tmp_path / "one", layout) as model:
        slots = np.arange(60) + (model.storage.dp_ranks - 1) * 60
        for wanted in (None, 1, 0):
            found = texts.logits(model, tokens, [40, *[1] * 4, 16], groups=wanted, slots=slots).log_softmax(-1)
            expected = texts.logits(plain, tokens, groups=wanted).log_softmax(-1)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        check_memory(model, texts.storage(model, 64 * model.storage.dp_ranks), torch.float32)
        heads = 0 if model.config.mtp is None else len(model.config.mtp.heads)
        assert heads == (model.mtp.heads if model.mtp is not None else 0) == {"v2": 0, "openpangu": 3}.get(name, 1)
        LayerFuzz(model, kin, plain).check(requests, 1)


def test_running_states_are_of_one_copy_of_attention() -> None:
    config = ModelConfig.from_json(Pangu2(**OPENPANGU).c)
    with pytest.raises(ValueError, match="^ep=1,tp=1,dp=2 runs attention side by side, and this model has running"):
        RankShard.all(config, Parallel(dp=2))
    assert usual(config, 4) == Parallel(ep=4)
