"""What part of a data sheet's figures a step reaches."""

from __future__ import annotations

from dataclasses import dataclass


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


# Memory and links are stated: what reads of large arrays and large messages commonly reach. The other
# two are what two published figures give, see `published.calibrate`.
STATED = Efficiency(memory=0.8, compute=1.0, link=0.8, layer=0.0)
# Of a probed CPU: the same share of the memory; of the products what the kernels' bfloat16 step of 128
# rows reached of torch's square product (two cores of an AMD EPYC, Zen 5).
HOST = Efficiency(memory=0.8, compute=0.65, link=1.0, layer=0.0)
