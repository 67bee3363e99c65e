"""The running confidence, and where it falls."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastslow.engine.params import Escalation
from fastslow.engine.sampling.confidence import Confidence
from fastslow.engine.sampling.probs import log_probability, logprobs

SURE, UNSURE = math.log(0.9), math.log(0.2)


def confidence(below: float = 0.5, window: int = 2, within: int | None = None) -> Confidence:
    return Confidence(Escalation(below=below, window=window, within=within))


def test_it_is_the_geometric_mean_of_the_latest_tokens() -> None:
    found = confidence()
    assert found.value == 1.0
    found.take([SURE, SURE, UNSURE], last=False)
    assert found.value == pytest.approx(math.sqrt(0.9 * 0.2))
    assert str(found) == "confidence 0.42 < 0.5 over 2 tokens"


@pytest.mark.parametrize(("settings", "said", "fell"), [
    ({}, [SURE, SURE, UNSURE], True),
    ({"window": 3}, [UNSURE] * 2, False),  # a window must be full
    ({"window": 3}, [UNSURE] * 3, True),
    ({"within": 3}, [SURE] * 3, False),  # it looks no further
    ({"below": 0.0, "window": 1}, [-1e9], False),
])  # fmt: skip
def test_where_it_falls(settings: dict[str, Any], said: list[float], fell: bool) -> None:
    found = confidence(**settings)
    found.take(said, last=False)
    assert (found.fell, found.tokens) == (fell, len(said))
    assert found.watching == (not fell and settings.get("within") != len(said))


@pytest.mark.parametrize(("window", "to_the_end", "fell"), [(8, False, False), (8, True, True), (2, False, False)])
def test_the_end_of_a_short_answer_counts_where_it_can_begin_again(window: int, to_the_end: bool, fell: bool) -> None:
    found = Confidence(Escalation(below=0.5, window=window), to_the_end)
    found.take([UNSURE, UNSURE], last=True)
    assert found.fell is fell and not found.watching


def test_a_run_is_cut_after_the_token_at_which_it_falls() -> None:
    found = confidence()
    assert found.keeps([SURE, SURE, UNSURE, UNSURE]) == 3 and found.keeps([SURE, SURE]) == 2
    assert found.tokens == 0, "looking remembers nothing"
    assert confidence(within=3).keeps([SURE, SURE, SURE, UNSURE, UNSURE, UNSURE]) == 6


@given(st.lists(st.sampled_from([SURE, UNSURE, -0.6]), max_size=20), st.data())
def test_runs_do_not_matter(said: list[float], data: st.DataObject) -> None:
    alone = confidence(window=3)
    for logprob in said:
        alone.take([logprob], last=False)
    found = confidence(window=3)
    while said and found.watching:
        run = said[: data.draw(st.integers(1, 5))]
        kept = found.keeps(run)
        found.take(run[:kept], last=False)
        said = said[kept:]
    assert (found.fell, found.tokens) == (alone.fell, alone.tokens)


def test_a_log_probability_is_the_models_own() -> None:
    logits_V = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 4
    expected = logprobs(logits_V, 7, 0)[7]
    assert log_probability(logits_V, 7) == pytest.approx(expected, abs=1e-5)
