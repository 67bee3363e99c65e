"""What part of a data sheet's figures a step reaches."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of the peak, and what a layer takes whatever it does.

    Attributes:
        memory: of the memory's bandwidth.
        compute: of the matrix products.
        link: of the links between cards.
        layer: seconds a layer takes besides: launches, synchronisation, latencies of collectives.
    """

    memory: float
    compute: float
    link: float
    layer: float

    def with_fit(self, compute: float, layer: float) -> Efficiency:
        """The same with the two numbers that published figures give."""
        return replace(self, compute=compute, layer=layer)


# Memory and links are stated: what reads of large arrays and large messages commonly reach. The other
# two are what two published figures give (`published.calibrate`); a test holds them together.
PUBLISHED = Efficiency(memory=0.8, compute=0.0, link=0.8, layer=0.0)
# A probed device has no shares: what was measured is what it does.
PROBED = Efficiency(memory=1.0, compute=1.0, link=1.0, layer=0.0)
