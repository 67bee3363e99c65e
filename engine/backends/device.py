"""From the name of a device to the device, and to what runs there."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from fastslow.engine.backends.accelerator.ops import PagedOps
    from fastslow.engine.model.ops import Ops

KINDS = ("cpu", "cuda", "npu")


class DeviceChoice(NamedTuple):
    """The kind of device that a model runs on, one of KINDS, and torch's device of it."""

    kind: str
    device: torch.device


def choose_device(device: str | torch.device) -> DeviceChoice:
    """The device that a name means; "auto" is an NPU or a GPU where there is one, else the CPU. ValueError for a
    device that this version or this machine does not have."""
    if device == "auto":
        npu = getattr(torch, "npu", None)  # set by torch_npu where it is loaded
        has_npu = npu is not None and npu.is_available()
        device = "npu" if has_npu else "cuda" if torch.cuda.is_available() else "cpu"
    kind = str(device).partition(":")[0]
    if kind not in KINDS:
        raise ValueError(f"device {str(device)!r} is not one of auto, {', '.join(KINDS)}")
    picked = _npu(str(device)) if kind == "npu" else _named(device)
    if kind == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {str(device)!r} is not on this machine, which has no such GPU")
    if kind == "cpu" and picked.index is not None:
        raise ValueError(f"device={str(device)!r}: the CPU has no number")
    return DeviceChoice(kind, picked if picked.type == "cpu" else _numbered(picked))


def _numbered(device: torch.device) -> torch.device:
    """With a number, the calling thread's where none is named: the engine's thread has its own."""
    if device.index is not None:
        return device
    return torch.device(device.type, torch.get_device_module(device).current_device())


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


def ops_for(kind: str) -> Ops:
    """The building blocks of `engine.backends.torch.decoder.Decoder` for a kind of device."""
    from fastslow.engine.backends.torch.onednn import OneDnnOps
    from fastslow.engine.model.ops import Ops

    return OneDnnOps() if kind == "cpu" else Ops()


def paged_ops_for(place: DeviceChoice) -> PagedOps:
    """The building blocks of `engine.backends.accelerator.decoder.PagedDecoder`; ValueError for an unknown chip."""
    if place.kind == "cuda":
        from fastslow.engine.backends.accelerator.cuda import CudaOps

        return CudaOps(place.device)
    # torch_npu is imported by these two files alone
    from fastslow.engine.backends.accelerator.npu import NpuOps, chip
    from fastslow.engine.backends.accelerator.npu_310p import Npu310pOps

    name = chip()
    if name.startswith("Ascend310P"):
        return Npu310pOps(place.device)
    if name.startswith(("Ascend910B", "Ascend910_93")):
        return NpuOps(place.device)
    raise ValueError(f"NPU chip {name!r} is not one of the known Ascend910B, 910_93 and 310P")
