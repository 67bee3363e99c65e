"""Figures of cards, from data sheets. `docs/planner.md` has the sources."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Device:
    """Figures of one card: bytes, bytes per second, and operations per second of matrix products, a multiplication and
    an addition as two."""

    name: str  # as the command line has it
    memory: float
    bandwidth: float  # of its memory
    int8: float
    half: float  # products in 16 bits
    peer: float  # that it sends to one other card
    mesh: bool = False  # whether it has such a link to each of the others at once

    def link(self, cards: int) -> float:
        """Bytes per second that a card sends in a collective of `cards`."""
        if cards == 1:
            return float("inf")
        return self.peer * (cards - 1 if self.mesh else 1)


DEVICES = {
    device.name: device
    for device in (
        # Ascend 910B, 64 GiB; HCCS gives 28 GB/s in each direction to each of seven peers.
        Device("800i-a2", 64 * GIB, 1.6e12, 560e12, 280e12, 28e9, mesh=True),
        # Two 310P on a card; cards meet over PCIe 4.0 x16.
        Device("300i-duo", 96 * GIB, 408e9, 280e12, 140e12, 32e9),
        # SXM5, dense figures; NVLink 4 through a switch, 450 GB/s in each direction.
        Device("h100", 80e9, 3.35e12, 1979e12, 989e12, 450e9),
    )
}
