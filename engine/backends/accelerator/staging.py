"""A step's numbers to the device: side by side in memory that it copies from by itself, in one copy."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastslow.engine.backends.accelerator.ops import Event, PagedOps

ALIGNMENT = 64  # bytes, of every tensor's first one
LEAST = 1 << 16  # bytes that are taken at once


class Staging:
    """One piece of host memory, pinned where the device can use that. It is filled again only once
    the device has read it: an event says when. So the host does not wait for a copy to end.

    Args:
        ops: the device's.
    """

    def __init__(self, ops: PagedOps) -> None:
        self._ops = ops
        self._host: Tensor | None = None
        self._read: Event | None = None

    def send(self, tensors: Sequence[Tensor], memory: Tensor) -> list[Tensor]:
        """Copy tensors of the host into `memory`, int8 of at least `room` on the device; the same
        tensors there."""
        if self._read is not None:
            self._read.synchronize()
        needed = room(tensors)
        if self._host is None or len(self._host) < needed:
            self._host = self._ops.host_memory(max(LEAST, 2 * needed))
        for mine, given in zip(_views(tensors, self._host), tensors):
            mine.copy_(given)
        memory[:needed].copy_(self._host[:needed], non_blocking=True)
        self._read = self._ops.event()
        return _views(tensors, memory)


def room(tensors: Sequence[Tensor]) -> int:
    """Bytes that tensors take side by side."""
    return sum(_whole(x.nbytes) for x in tensors)


def _views(tensors: Sequence[Tensor], memory: Tensor) -> list[Tensor]:
    """Tensors like these, one after the other in memory."""
    views, first = [], 0
    for x in tensors:
        views.append(memory[first : first + x.nbytes].view(x.dtype).view(x.shape))
        first += _whole(x.nbytes)
    return views


def _whole(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
