"""How long a step takes: a roofline whose terms add up.

Roofline: Williams, Waterman and Patterson, CACM 52(4), 2009. Products, reads of weights, reads of keys
and values, and collectives of a decode step follow each other layer by layer, so their times add.
"""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass, replace

from fastslow.engine.plan.device import Device
from fastslow.engine.plan.efficiency import Efficiency
from fastslow.engine.plan.precision import Precision
from fastslow.engine.plan.work import Work

ACTIVATION = 2.0  # bytes of a number of the residual stream between cards
COLLECTIVES = 4  # of a layer: gather and scatter, around attention and around the MLP


@dataclass(frozen=True, slots=True)
class Terms:
    """Seconds of a step, by what they are spent on."""

    weights: float
    kv: float
    compute: float
    links: float
    fixed: float

    @property
    def seconds(self) -> float:
        return self.weights + self.kv + self.compute + self.links + self.fixed

    def __add__(self, other: Terms) -> Terms:
        pairs = zip(astuple(self), astuple(other))
        return Terms(*(a + b for a, b in pairs))

    def __mul__(self, times: float) -> Terms:
        return Terms(*(a * times for a in astuple(self)))

    @property
    def binding(self) -> str:
        """The largest term."""
        parts: dict[str, float] = asdict(self)
        return max(parts, key=parts.__getitem__)


@dataclass(frozen=True, slots=True)
class Setting:
    """A model on cards.

    Attributes:
        work: the model's sizes.
        device: each card.
        cards: how many; weights, keys and values and products are spread evenly over them, as
            groups of experts and tensor parallel attention do.
        precision: bits.
        efficiency: shares of the peak.
    """

    work: Work
    device: Device
    cards: int
    precision: Precision
    efficiency: Efficiency

    def of(self, work: Work) -> Setting:
        """The same for other work."""
        return replace(self, work=work)

    def decode(self, requests: float, rows: float, context: float) -> Terms:
        """One step of so many requests, each with `rows` rows (its last token and drafted ones).

        context: tokens before them, of each request.
        """
        return self._terms(requests * rows, requests, requests * rows, context)

    def prefill(self, requests: float, tokens: float) -> Terms:
        """So many prompts of `tokens` in one step; a row sees half of its prompt on average.

        The two halves of the work take turns, so that collectives run beside products and the
        longer of the two counts.
        """
        t = self._terms(requests * tokens, 0, requests, tokens / 2)
        slow = max(t.compute, t.links)
        return Terms(t.weights, t.kv, *((slow, 0.0) if slow == t.compute else (0.0, slow)), t.fixed)

    def _terms(self, rows: float, read: float, heads: float, context: float) -> Terms:
        """rows: through the layers; read: requests whose keys and values are read; heads: rows
        whose logits are made; context: tokens that a row sees."""
        w, d, p, e = self.work, self.device, self.precision, self.efficiency
        memory = self.cards * d.bandwidth * e.memory
        weight = p.weight * (w.always + w.expert * w.distinct(rows)) + p.head * w.head
        running = w.always + w.expert * w.chosen
        head = d.int8 if p.int8 and p.head < 2 else d.half
        products = 2 * rows * running / (d.int8 if p.int8 else d.half)
        products += 2 * heads * w.head / head + rows * context * w.attention / d.half
        crossing = (self.cards - 1) / self.cards * rows * w.hidden * ACTIVATION
        return Terms(
            weights=weight / memory,
            kv=read * context * w.kv * p.kv / memory,
            compute=products / self.cards / e.compute,
            links=COLLECTIVES * w.layers * crossing / (d.link(self.cards) * e.link),
            fixed=w.layers * e.layer,
        )

    def memory(self, requests: float, context: float) -> float:
        """Bytes of each card: its part of weights, and of keys and values of so many requests."""
        w, p = self.work, self.precision
        ends = min(w.stored, 2 * w.head)  # embedding and head; a tied one lies there once as well
        inner = w.always + w.expert * w.experts
        weights = p.weight * inner + p.head * min(ends, w.stored - inner)
        return (weights + requests * context * w.kv * p.kv) / self.cards
