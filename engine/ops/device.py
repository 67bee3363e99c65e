"""From the name of a device to the device, and to what runs there."""

from __future__ import annotations

import importlib
from typing import NamedTuple

import torch

KINDS = ("cpu", "cuda", "npu")


class Place(NamedTuple):
    """Where a model runs: one of KINDS, and torch's device of it."""

    kind: str
    device: torch.device


def find_place(device: str | torch.device) -> Place:
    """The device that a name means; "auto" is an NPU or a GPU where there is one, else the CPU.

    Raises:
        ValueError: one sentence about a device that this version or this machine does not have.
    """
    if device == "auto":
        return Place("npu", torch.device("npu")) if _has_npu() else _gpu_or_cpu()
    kind = str(device).partition(":")[0]
    if kind not in KINDS:
        raise ValueError(f"device {str(device)!r} is not one of auto, {', '.join(KINDS)}")
    if kind == "npu":
        return Place("npu", _npu(str(device)))
    picked = _named(device)
    if kind == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {str(device)!r} is not on this machine, which has no such GPU")
    return Place(kind, picked)


def _gpu_or_cpu() -> Place:
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    return Place(kind, torch.device(kind))


def _has_npu() -> bool:
    npu = getattr(torch, "npu", None)  # set by torch_npu where it is loaded
    return npu is not None and bool(npu.is_available())


def _npu(device: str) -> torch.device:
    try:
        torch_npu = importlib.import_module("torch_npu")
    except (ImportError, OSError) as error:
        raise ValueError(
            f"device {device!r} needs torch-npu of torch's own version ({torch.__version__}) and a "
            f"CANN toolkit: pip install 'fastslow[npu]', then source CANN's set_env.sh ({error})"
        ) from None
    if not torch_npu.npu.is_available():
        raise ValueError(f"device {device!r} is not on this machine: torch-npu finds no NPU")
    picked = _named(device)
    if (picked.index or 0) >= torch_npu.npu.device_count():
        raise ValueError(f"device {device!r} is not on this machine, which has no such NPU")
    return picked


def _named(device: str | torch.device) -> torch.device:
    try:
        return torch.device(device)
    except RuntimeError:
        raise ValueError(f"device {device!r} is not a device name, like cpu or cuda:0") from None
