"""The building blocks: right, and blind to the rows beside a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from pairs import pairwise
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.backends.torch import onednn
from fastslow.engine.backends.torch.onednn import OneDnnOps
from fastslow.engine.model.ops import Ops

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float64: 1e-12}


@pytest.fixture(params=[OneDnnOps, Ops])
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
CUTS = ((0, 1), (3, 5), (7, 14), (60, 133), (1, 65))
SHAPES = ((960, 576), (128, 64), (112, 48), (96, 64))


def check(run: Callable[[Tensor], Tensor], x: Tensor, expected: Tensor) -> None:
    """It is near what float64 gives, and a row is the same among any."""
    whole, limit = run(x), TOLERANCE[x.dtype]
    assert whole.dtype == x.dtype
    torch.testing.assert_close(whole.double(), expected, rtol=limit, atol=limit)
    for start, stop in (*CUTS, (333, 335), (667, 668), (1000, 1001)):
        assert torch.equal(run(x[start:stop]), whole[start:stop])


@pytest.mark.parametrize(("dtype", "shape", "threads"), pairwise(DTYPES, SHAPES, THREADS), indirect=["threads"])
def test_blocks_are_right_and_row_independent(
    ops: Ops, dtype: torch.dtype, shape: tuple[int, int], threads: int
) -> None:
    """Elementwise ones are large enough that threads share the rows, and shares end within a row."""
    torch.manual_seed(0)
    weight, bias = torch.randn(shape).to(dtype) / shape[1] ** 0.5, torch.randn(shape[0]).to(dtype)
    x, packed = (3 * torch.randn(133, shape[1])).to(dtype), ops.pack(weight)
    expected = F.linear(x.double(), weight.double(), bias.double())
    check(lambda rows: ops.linear(rows, packed, bias), x, expected)
    x, norm = (3 * torch.randn(1001, 224)).to(dtype), torch.randn(224).to(dtype)
    gate, up = x.double().chunk(2, -1)
    check(lambda rows: ops.gated(rows, "silu"), x, F.silu(gate) * up)
    expected = F.rms_norm(x.double(), (224,), norm.double(), 1e-5)
    check(lambda rows: ops.rms_norm(rows, norm, 1e-5), x, expected)


def test_silu_of_large_values_does_not_overflow(ops: Ops) -> None:
    gate_up = torch.tensor([[-300.0, -90.0, 90.0, 1.0, 1.0, 1.0]]).repeat(4, 1)
    assert torch.equal(ops.gated(gate_up, "silu")[0], torch.tensor([0.0, 0.0, 90.0]))


def test_without_onednn_plain_products_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "packable", lambda dtype: False)
    weight, x = torch.randn(8, 16), torch.randn(4, 16)
    assert OneDnnOps().pack(weight) is weight
    assert torch.equal(OneDnnOps().linear(x, weight), F.linear(x, weight))
