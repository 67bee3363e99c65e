"""What must hold of openPangu 2.0 whatever its weights are, of the reference that the engine is held against."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pangu_2_reference import CONFIG, Pangu2

TOKENS = np.random.default_rng(5).integers(0, CONFIG["vocab_size"], 20)


@pytest.fixture(scope="module")
def model() -> Pangu2:
    return Pangu2()


def test_streams_are_mixed_by_doubly_stochastic_matrices(model: Pangu2) -> None:
    streams = np.random.default_rng(0).normal(size=(9, CONFIG["mhc_num_stream"], CONFIG["hidden_size"]))
    pre, post, res = model.mixing("model.layers.0.attn_mhc_module", streams)
    np.testing.assert_allclose(res.sum(-2), 1, atol=1e-5)
    np.testing.assert_allclose(res.sum(-1), 1, atol=1e-4)
    assert (res > 0).all() and ((0 < pre) & (pre < 1.1)).all() and ((0 < post) & (post < 2)).all()


def test_no_row_sees_a_later_one(model: Pangu2) -> None:
    other = TOKENS.copy()
    other[12:] = (other[12:] + 1) % CONFIG["vocab_size"]
    rows = zip([model.states(TOKENS), *model.drafting(TOKENS)], [model.states(other), *model.drafting(other)])
    for k, (one, two) in enumerate(rows):
        assert len(one) == len(TOKENS) - k
        np.testing.assert_allclose(one[: 12 - k], two[: 12 - k], rtol=0, atol=1e-12)
        assert np.abs(one[12 - k] - two[12 - k]).max() > 1e-3


@pytest.mark.parametrize(
    ("layer", "fields", "reach"),
    [(1, {}, 2 + 6 + 2), (3, {}, 27), (3, {"index_topk": 4}, 27), (3, {"dsa_layers": []}, 27)],
)
def test_windows_and_convolutions_reach_as_far_as_they_should(layer: int, fields: dict[str, Any], reach: int) -> None:
    """A key is made of its row and of two before it; what heads saw is convolved, too."""
    model, x = Pangu2(**fields), np.random.default_rng(1).normal(size=(30, CONFIG["hidden_size"]))
    changed = x.copy()
    changed[3] += 1
    places = np.arange(30)
    moved = np.abs(model.attention(layer, changed, places) - model.attention(layer, x, places)).max(-1)
    found = np.flatnonzero(moved > 1e-9)
    assert found[0] == 3 and found[-1] == 2 + reach
    if "index_topk" in fields:
        whole = Pangu2().attention(layer, x, places)
        few = np.abs(model.attention(layer, x, places) - whole).max(-1) > 1e-9
        assert not few[:4].any() and few[6:].all()


def test_scores_depend_on_distances_but_for_those_of_sinks(model: Pangu2) -> None:
    x, places, alone = np.random.default_rng(2).normal(size=(9, CONFIG["hidden_size"])), np.arange(9), Pangu2()
    alone.c = alone.c | {"param_sink_number": 0}
    np.testing.assert_allclose(alone.attention(3, x, places + 100), alone.attention(3, x, places), atol=1e-9)
    assert np.abs(model.attention(3, x, places + 100) - model.attention(3, x, places)).max() > 1e-3
