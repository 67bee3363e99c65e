"""Which names of torch_npu are called, and where; how they are called is bound to its schemas by `npu_kernels.py`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import npu_kernels
import npu_sim
import pytest
import torch
from npu_tools import CHIPS, simulated

from fastslow.engine.backends.device import choose_device, paged_ops_for

ROOT = Path(__file__).parents[3]
FILES = ("engine/backends/accelerator/npu.py", "engine/backends/accelerator/npu_310p.py")
CALLED = re.compile(r"torch_npu\.((?:npu\.)?\w+)")


def test_all_names_exist_and_all_schemas_are_used() -> None:
    text = "".join((ROOT / file).read_text("utf-8") for file in FILES)
    known = {schema.partition("(")[0].partition("::")[2] for schema in npu_kernels.SCHEMAS}
    device = {f"npu.{name}" for name in vars(npu_sim.torch_npu().npu)}
    found = set(CALLED.findall(text))
    assert found - device == known and "torch.ops." not in text
    assert json.loads(npu_kernels.FILE.read_text("utf-8"))["torch_npu"] == "2.13.0"


def test_a_call_that_does_not_bind_is_refused() -> None:
    """The simulated operators have the real ones' schemas."""
    with simulated(CHIPS[0]):
        paged_ops_for(choose_device("npu"))
        import torch_npu

        x = torch.ones(2, 16)
        assert torch_npu.npu_rms_norm(x, x[0], epsilon=1e-6)[0].shape == x.shape
        for given in ({"eps": 1e-6}, {"epsilon": "small"}):
            with pytest.raises(RuntimeError, match="npu_rms_norm"):
                torch_npu.npu_rms_norm(x, x[0], **given)
        with pytest.raises(RuntimeError, match="missing value for argument"):
            torch_npu.npu_rms_norm(x)


def test_calls_are_in_these_files_only() -> None:
    files = [p for room in ("engine", "draft", "policies") for p in (ROOT / room).rglob("*.py")]
    words = ("torch_npu.", "ops.npu.", "from torch_npu")
    found = {p for p in files if any(word in p.read_text("utf-8") for word in words)}
    others = {path.relative_to(ROOT).as_posix() for path in found}
    assert others - set(FILES) == {"engine/backends/device.py"}
