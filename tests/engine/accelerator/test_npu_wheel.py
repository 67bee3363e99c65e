"""The engine on `npu:0`, with torch-npu's own dispatcher, tensors and graphs, and no NPU."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import npu_cann
import pytest

WHEEL = os.environ.get("FASTSLOW_NPU_WHEEL", "")
ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.skipif(not WHEEL, reason="FASTSLOW_NPU_WHEEL names no torch-npu wheel")
def test_the_engine_on_the_real_torch_npu(tmp_path: Path) -> None:
    with zipfile.ZipFile(WHEEL) as wheel:
        wheel.extractall(tmp_path / "wheel")
    npu_cann.build(tmp_path / "wheel", tmp_path / "cann")
    folders = (ROOT, ROOT / "tests/support", ROOT / "tests/engine", tmp_path / "wheel")
    environment = {
        **os.environ,
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        "LD_LIBRARY_PATH": str(tmp_path / "cann"),
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "ASCEND_OPP_PATH": str(tmp_path / "cann"),
    }
    command = [sys.executable, str(ROOT / "tests/support/npu_wheel_run.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert "a word with the host is seen" in done.stdout
