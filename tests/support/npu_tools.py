"""Models on a simulated NPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import npu_kernels
import npu_sim
import pytest
import torch

CHIPS = ("Ascend910B1", "Ascend310P3")


@contextmanager
def simulated(chip: str, exact: bool = True) -> Iterator[None]:
    """`device="npu"` is this chip. exact: float32 runs, too, as it does on no chip: what is left then
    is the engine's own arithmetic, which must be that of the CPU."""
    npu_sim.install()
    from fastslow.engine.backends import device
    from fastslow.engine.backends.accelerator import npu, npu_310p

    def named(name: str | torch.device) -> torch.device:
        return torch.device("cpu" if str(name).startswith("npu") else name)

    before = (npu_kernels.CHIP.name, npu_kernels.CHIP.exact)
    npu_kernels.CHIP.name, npu_kernels.CHIP.exact = chip, exact
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(device, "_named", named)
            if exact:
                for kind in (npu.NpuOps, npu_310p.Npu310pOps):
                    patch.setattr(kind, "dtypes", (*kind.dtypes, torch.float32))
            yield
    finally:
        npu_kernels.CHIP.name, npu_kernels.CHIP.exact = before
