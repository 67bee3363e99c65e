"""How rows are routed to experts on an NPU: as on the host, and with weights that are not rounded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from npu_kernels import define
from npu_tools import simulated
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.backends.accelerator.ops import DeviceMatrix, DeviceMlp
from fastslow.engine.model.moge import ExpertChoice

define()


@pytest.fixture(autouse=True)
def chip() -> Iterator[None]:
    with simulated("Ascend910B1"):
        yield


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["Ascend910B1", "Ascend310P3"])
def test_the_routers_weights_are_not_rounded(name: str) -> None:
    """Neither those that it multiplies by nor those that it gives: two experts that are each other's
    negative nearly cancel, and what is left is the difference of their weights."""
    from fastslow.engine.backends.accelerator.npu import NpuOps
    from fastslow.engine.backends.accelerator.npu_310p import Npu310pOps

    with simulated(name, exact=False):
        kind = Npu310pOps if name == "Ascend310P3" else NpuOps
        ops = kind(torch.device("cpu"))
        x = random(3, 32).to(ops.dtypes[0])
        router = random(4, 32, seed=1)
        assert torch.equal(ops.route(x, router), F.linear(x.float(), router))
        up = random(1, 32, 32, seed=2).to(x.dtype)
        down = random(1, 16, 32, seed=3).to(x.dtype)
        both = DeviceMlp(
            DeviceMatrix(ops.pack_experts(torch.cat((up, up)))),
            DeviceMatrix(ops.pack_experts(torch.cat((down, -down)))),
        )
        experts = torch.tensor([[0, 1]] * 3, dtype=torch.int32)
        weights = torch.tensor([[0.5001, 0.5]] * 3)
        none = torch.zeros_like(x)
        found = ops.experts(x, ExpertChoice(experts, weights), both, none)
        alone = torch.tensor([[1.0, 0.0]] * 3)
        one = ops.experts(x, ExpertChoice(experts, alone), both, none)
        torch.testing.assert_close(found.float(), one.float() * 1e-4, rtol=0.02, atol=1e-6)
