"""Device-specific building blocks of the models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastslow.engine.ops.device import Place

if TYPE_CHECKING:
    from fastslow.engine.ops.base import Ops
    from fastslow.engine.ops.paged import PagedOps


def ops_for(kind: str) -> Ops:
    """The building blocks of `engine.model.decoder.Decoder` for a kind of device."""
    from fastslow.engine.ops.onednn import OneDnnOps
    from fastslow.engine.ops.reference import ReferenceOps

    return OneDnnOps() if kind == "cpu" else ReferenceOps()


def paged_ops_for(place: Place) -> PagedOps:
    """The building blocks of `engine.model.paged.PagedDecoder` for an accelerator.

    Raises:
        ValueError: an NPU whose chip is not known.
    """
    if place.kind == "cuda":
        from fastslow.engine.ops.cuda import CudaOps

        return CudaOps(place.device)
    from fastslow.engine.ops.npu import ops_of_chip

    return ops_of_chip(place.device)
