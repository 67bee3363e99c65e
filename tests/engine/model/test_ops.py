"""The building blocks: right, and blind to the rows beside a row."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from pairs import pairwise
from torch.nn import functional as F

from fastslow.engine.backends.torch import reference
from fastslow.engine.backends.torch.reference import OneDnnOps, ReferenceOps
from fastslow.engine.model.ops import Ops

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float64: 1e-12}


@pytest.fixture(params=[OneDnnOps, ReferenceOps])
def ops(request: pytest.FixtureRequest) -> Ops:
    made: Ops = request.param()
    return made


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


THREADS = (1, 2, 3)
SHAPES = ((960, 576), (128, 64), (112, 48), (96, 64))


@pytest.mark.parametrize(
    ("dtype", "shape", "threads"), pairwise(DTYPES, SHAPES, THREADS), indirect=["threads"]
)
def test_linear_is_right_and_row_independent(
    ops: Ops, dtype: torch.dtype, shape: tuple[int, int], threads: int
) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(shape).to(dtype) / shape[1] ** 0.5, torch.randn(shape[0]).to(dtype)
    x = torch.randn(133, shape[1]).to(dtype)
    packed = ops.pack(weight)
    whole = ops.linear(x, packed, bias)
    assert whole.dtype == dtype
    expected = F.linear(x.double(), weight.double(), bias.double())
    limit = TOLERANCE[dtype]
    torch.testing.assert_close(whole.double(), expected, rtol=limit, atol=limit)
    for start, stop in ((0, 1), (3, 5), (7, 14), (60, 133), (1, 65)):
        assert torch.equal(ops.linear(x[start:stop], packed, bias), whole[start:stop])


@pytest.mark.parametrize(("dtype", "threads"), list(zip(DTYPES, THREADS)), indirect=["threads"])
def test_elementwise_blocks_are_right_and_row_independent(
    ops: Ops, dtype: torch.dtype, threads: int
) -> None:
    """Large enough that threads share the rows, and shares end within a row."""
    torch.manual_seed(0)
    x = (torch.randn(1001, 2 * 112) * 3).to(dtype)
    norm = torch.randn(224).to(dtype)
    made = ops.gated(x, "silu"), ops.rms_norm(x, norm, 1e-5)
    limit = TOLERANCE[dtype]
    gate, up = x.double().chunk(2, -1)
    torch.testing.assert_close(made[0].double(), F.silu(gate) * up, rtol=limit, atol=limit)
    expected = F.rms_norm(x.double(), (224,), norm.double(), 1e-5)
    torch.testing.assert_close(made[1].double(), expected, rtol=limit, atol=limit)
    for t in (0, 333, 334, 500, 667, 1000):
        row = x[t : t + 1]
        assert torch.equal(ops.gated(row, "silu")[0], made[0][t])
        assert torch.equal(ops.rms_norm(row, norm, 1e-5)[0], made[1][t])


def test_silu_of_large_values_does_not_overflow(ops: Ops) -> None:
    gate_up = torch.tensor([[-300.0, -90.0, 90.0, 1.0, 1.0, 1.0]]).repeat(4, 1)
    assert torch.equal(ops.gated(gate_up, "silu")[0], torch.tensor([0.0, 0.0, 90.0]))


def test_without_onednn_plain_products_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "packable", lambda dtype: False)
    weight, x = torch.randn(8, 16), torch.randn(4, 16)
    assert OneDnnOps().pack(weight) is weight
    assert torch.equal(OneDnnOps().linear(x, weight), F.linear(x, weight))
