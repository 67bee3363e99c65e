"""Models in the accelerator's decoder, on a GPU's building blocks and on simulated NPUs, and plain torch beside them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from fake_cuda import RecordingOps
from npu_tools import CHIPS, simulated

from fastslow.engine.backends.accelerator.decoder import PagedDecoder
from fastslow.engine.backends.accelerator.ops import PagedOps
from fastslow.engine.backends.accelerator.weights import Stacked
from fastslow.engine.backends.device import DeviceChoice, ops_for, paged_ops_for
from fastslow.engine.backends.torch.decoder import Decoder
from fastslow.engine.backends.torch.weights import Weights
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ops import Read
from fastslow.engine.model.parts import WeightReader

CPU, DEVICES = torch.device("cpu"), ("cuda", *CHIPS)


@contextmanager
def ops_of(device: str, exact: bool = True) -> Iterator[PagedOps]:
    """The building blocks of one of DEVICES. exact: see `simulated`."""
    if device == "cuda":
        yield RecordingOps(CPU)
        return
    with simulated(device, exact):
        yield paged_ops_for(DeviceChoice("npu", CPU))


def paged(config: ModelConfig, ops: PagedOps, read: Read, dtype: torch.dtype = torch.float32) -> PagedDecoder:
    return PagedDecoder(Stacked(config, ops, dtype, CPU, read))


def plain(config: ModelConfig, read: Read, dtype: torch.dtype = torch.float32) -> Decoder:
    return Decoder(Weights(config, WeightReader(ops_for("cpu"), dtype, CPU, read)))
