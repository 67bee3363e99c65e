"""The target probabilities, parameter by parameter, against an independent computation in float64."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from distributions import plain_probs
from engine_tools import dense_probs
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastslow.engine.params import SamplingParams
from fastslow.engine.sampling.probs import logprobs

LOGITS = [2.0, -1.0, 0.5, 3.0, 0.0, 1.5, -2.0, 1.0]


def view(
    prompt: list[int] | None = None, answer: list[int] | None = None, end_ids: tuple[int, ...] = (), **fields: Any
) -> Any:
    start = prompt or [1]
    return SimpleNamespace(
        tokens=[*start, *(answer or [])], prompt_length=len(start),
        params=SamplingParams(**{"temperature": 1.0, **fields}), end_ids=frozenset(end_ids), thinking=None,
        thought_params=None, grammar=None,
    )  # fmt: skip


def got(request: Any, drafted: list[int] | None = None, logits: list[float] = LOGITS) -> NDArray[np.float32]:
    logits_V = torch.tensor(logits)
    probs_V = dense_probs(logits_V, request, drafted or [])
    assert logits_V.tolist() == torch.tensor(logits).tolist(), "logits are not changed"
    assert probs_V.dtype == np.float32 and (probs_V >= 0).all()
    assert float(probs_V.sum()) == pytest.approx(1, abs=1e-5)
    return probs_V


def check(request: Any, drafted: list[int] | None = None, logits: list[float] = LOGITS) -> None:
    text, start = [*request.tokens, *(drafted or [])], request.prompt_length
    expected = plain_probs(logits, text, start, request.params, request.end_ids)
    np.testing.assert_allclose(got(request, drafted, logits), expected, atol=2e-6)


@pytest.mark.parametrize("fields", [
    *({"temperature": heat} for heat in (0.0, 0.1, 3)), *({"top_k": count} for count in (-1, 0, 1, 3, 8, 10**9)),
    *({"top_p": share} for share in (1e-9, 0.5, 0.9999999)), *({"min_p": share} for share in (0.2, 1.0)),
    *({"repetition_penalty": factor} for factor in (0.01, 0.5, 1.7, 100)), {"top_k": 4, "top_p": 0.8},
    {"top_k": 5, "top_p": 0.95, "min_p": 0.1, "temperature": 0.7}, {"presence_penalty": 1.5},
    {"frequency_penalty": -2}, {"presence_penalty": -0.5, "frequency_penalty": 0.7, "repetition_penalty": 1.3},
    {"logit_bias": {0: -100, 6: 5.5}}, {"logit_bias": {3: -2.0}, "temperature": 0},
    *({"min_tokens": 4, "temperature": heat} for heat in (0, 1)), {"min_tokens": 3, "logit_bias": {3: 100}},
])  # fmt: skip
@pytest.mark.parametrize("drafted", [[], [3], [3, 0, 3]])
def test_each_parameter(fields: dict[str, Any], drafted: list[int]) -> None:
    check(view([1, 5, 5], [0, 6], end_ids=(3,), **fields), drafted)


@given(
    logits=st.lists(st.integers(-40, 40), min_size=2, max_size=8, unique=True),
    tokens=st.lists(st.integers(0, 1), max_size=4), drafted=st.lists(st.integers(0, 1), max_size=3),
    fields=st.fixed_dictionaries({
        "top_k": st.integers(-1, 9), "top_p": st.sampled_from([0.1, 0.37, 0.61, 0.93, 1.0]),
        "min_p": st.sampled_from([0.0, 0.013, 0.31]), "temperature": st.sampled_from([0.0, 0.31, 1.0, 2.7]),
        "presence_penalty": st.sampled_from([0.0, 0.63, -0.41]),
        "frequency_penalty": st.sampled_from([0.0, 0.63, -0.41]),
        "repetition_penalty": st.sampled_from([1.0, 1.31, 0.83]),
        "logit_bias": st.dictionaries(st.integers(0, 1), st.sampled_from([-3.3, 2.1, 50])),
    }),
)  # fmt: skip
def test_all_together(logits: list[int], tokens: list[int], drafted: list[int], fields: dict[str, Any]) -> None:
    check(view(answer=tokens, **fields), drafted, [value / 10 + 0.003 for value in logits])


EVEN, LOGS = [0.0] * 4, [math.log(p) for p in (0.4, 0.2, 0.2, 0.1, 0.1)]


@pytest.mark.parametrize(("fields", "logits", "kept"), [
    ({"top_k": 2}, [1.0, 3.0, 1.0, 0.0, 1.0], [0, 1, 2, 4]),  # equals of the kth stay
    ({"top_p": 0.5}, EVEN, [0, 1]),  # with the token that crosses the line; the first of equals
    ({"top_p": 0.51}, EVEN, [0, 1, 2]),
    ({"top_p": 1.0}, EVEN, [0, 1, 2, 3]),
    ({"top_p": 1e-30}, LOGITS, [3]),
    ({"top_k": 2, "top_p": 0.49}, LOGS, [0]),  # top_p counts what top_k left: 0.4, 0.2, 0.2
    ({"top_k": 2, "top_p": 0.51}, LOGS, [0, 1]),
    ({"temperature": 0}, [0.0, 2.0, 2.0], [1]),
    ({"temperature": 0.5}, [3e4, 3e4 - 1, -3e4], [0, 1]),  # no overflow
    *(({"temperature": heat}, LOGITS, [3]) for heat in (5e-324, 1e-300, 1e-40, 1e-8, 1e-3)),
    *(({"temperature": heat}, [1.0, 1.0, 0.0], [0, 1]) for heat in (5e-324, 1e-300, 1e-3)),
])  # fmt: skip
def test_what_is_kept(fields: dict[str, Any], logits: list[float], kept: list[int]) -> None:
    probs_V = got(view(**fields), logits=logits)
    assert np.flatnonzero(probs_V).tolist() == kept
    assert len({probs_V[i] for i in kept if logits[i] == logits[kept[-1]]}) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_leaves_no_probabilities_is_an_error(temperature: float) -> None:
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(FloatingPointError, match="not finite"):
            dense_probs(torch.tensor([0.0, bad, 1.0]), view(temperature=temperature), [])
    masked = view(end_ids=(0, 1), min_tokens=1, temperature=temperature)
    with pytest.raises(FloatingPointError, match="no token is left"):
        dense_probs(torch.tensor([0.0, 1.0]), masked, [])


def test_logprobs_are_the_models_own_likeliest_first_with_the_chosen_one() -> None:
    logits_V = torch.tensor(LOGITS)
    own = [v - math.log(sum(map(math.exp, LOGITS))) for v in LOGITS]
    table = logprobs(logits_V, 6, 2)
    assert list(table) == [3, 0, 6]
    assert list(table.values()) == pytest.approx([own[3], own[0], own[6]], abs=1e-5)
    assert list(logprobs(logits_V, 3, 2)) == [3, 0] and list(logprobs(logits_V, 5, 0)) == [5]
    assert len(logprobs(logits_V, 5, 1000)) == len(LOGITS)
    assert sum(map(math.exp, logprobs(logits_V, 5, 1000).values())) == pytest.approx(1, abs=1e-5)
