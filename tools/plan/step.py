"""Seconds that a step takes: a roofline whose terms add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass, replace
from math import prod
from operator import add
from typing import Any

import torch

from fastslow.engine.kv.state.layout import RowState, rows_of
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.mixers.latent import LatentAttention
from fastslow.engine.model.parts import Mixer
from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.model.tensors import tensor_shapes
from fastslow.policies.modes import builtin_modes
from fastslow.tools.plan.device import Device


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of the peak, and what a layer takes whatever it does."""

    memory: float  # of the memory's bandwidth
    compute: float  # of the matrix products
    link: float  # of the links between cards
    layer: float  # seconds besides: launches, synchronisation, latencies of collectives


# Memory and links are stated: what reads of large arrays and large messages mostly achieve. The other
# two are solved from two published figures of openPangu Pro MoE 72B on 800I A2 (arXiv 2505.21411, section
# 5.3): a small step is all fixed cost, a large one adds products. docs/planner.md compares the rest.
CARDS = Efficiency(memory=0.8, compute=0.30953516, link=0.8, layer=312.994267e-6)

HEAD = 2.0  # bytes of a weight over the vocabulary: embedding and head stay in 16 bits
WEIGHTS = {"w8a8": 1.0, "bf16": 2.0}  # bytes of any other weight
KV = {"bf16": 2.0, "int8": 1.0}
ACTIVATION = 2.0  # bytes of a number of the residual stream between cards
COLLECTIVES = 4  # of a layer: gather and scatter, around attention and around the MLP
EXPERT = ".mlp.experts."


@dataclass(frozen=True, slots=True)
class Precision:
    """Formats of weights and of keys and values: names of `WEIGHTS` and `KV`."""

    weights: str
    kv_format: str

    @property
    def weight(self) -> float:
        """Bytes of a number in a layer's matrix."""
        return WEIGHTS[self.weights]

    @property
    def kv(self) -> float:
        """Bytes of a number of keys and values."""
        return KV[self.kv_format]


@dataclass(frozen=True, slots=True)
class TextReads:
    """What layers of one kind read of a text, all of them together: numbers of each token that is seen, and operations
    on it. most: tokens that a row sees; 0: all. front: learned ones that it sees besides, and that are weights."""

    numbers: float
    operations: float
    most: int = 0
    front: int = 0

    def seen(self, context: float) -> float:
        """Tokens of a text that a row sees."""
        return min(context, self.most) if self.most else context

    def times(self, layers: float) -> TextReads:
        """The same of so many layers."""
        return replace(self, numbers=self.numbers * layers, operations=self.operations * layers)

    @classmethod
    def of(cls, mixer: Mixer, row: RowState) -> Iterator[TextReads]:
        """Of one layer, with rows like this."""
        if isinstance(mixer, LatentAttention):
            operations = 2 * mixer.heads * (row.key_dim + row.value_dim)
            indexer = mixer.indexer
            limits = row.window, indexer.most if indexer is not None else 0
            most = min(filter(None, limits), default=0)
            yield cls(row.key_dim, operations, most, mixer.sinks)
            if indexer is not None and not indexer.shared:
                yield cls(indexer.beside, 2 * indexer.heads * indexer.dim)
        elif isinstance(mixer, GroupedAttention):
            yield cls(row.numbers, 4 * mixer.query_width, row.window, mixer.sinks)


@dataclass(frozen=True, slots=True)
class ForwardWork:
    """Sizes of a model, in numbers, not bytes; over all layers where nothing else is said."""

    layers: int
    hidden: int
    always: float  # weights that every row passes: attention, shared experts, dense MLPs, norms
    head: float  # weights over the vocabulary; of the embedding only rows are read
    expert: float  # weights of one routed expert
    experts: int  # routed ones of a layer; 0 for a dense model
    chosen: int  # of them, by a row
    fewer: int  # the same in mode "fast"
    kv: float  # keys and values of a token
    texts: tuple[TextReads, ...]
    stored: float  # weights that lie in memory
    state: float = 0  # bytes of a request's running states, which a step reads and writes once
    request: float = 0  # bytes of these and of rows that are not folded in

    @classmethod
    def of(cls, config: ModelConfig) -> ForwardWork:
        """Counted from the tensors that a checkpoint of the config holds."""
        shapes = tensor_shapes(config)
        every = {name: prod(shape) for name, shape in shapes.items()}
        embedding = every["model.embed_tokens.weight"]
        routed = sum(count for name, count in every.items() if EXPERT in name)
        head = every.get("lm_head.weight", embedding)
        total = sum(every.values())
        ends = embedding + (0 if config.tie_word_embeddings else head)
        layout, found = config.state_layout, Counter[TextReads]()
        for layer, row in zip(config.layers, map(rows_of, layout.layers)):
            if row is not None:
                found.update(TextReads.of(layer.mixer, row))
        units = RoutedUnits.of(config)
        fast = builtin_modes(units)["fast"]
        count, mixture = getattr(fast, units.name), config.routed
        experts = mixture.experts if mixture else 0
        return cls(
            layers=len(config.layers),
            hidden=config.hidden_size,
            always=total - ends - routed,
            head=head,
            expert=routed / experts if experts else 0,
            experts=experts,
            chosen=config.chosen,
            fewer=mixture.router.running(count) if mixture else 0,
            kv=layout.token_numbers,
            texts=tuple(kind.times(layers) for kind, layers in found.items()),
            stored=total,
            state=layout.snapshot_bytes(torch.float32),
            request=layout.request_bytes(torch.float32),
        )

    def distinct(self, rows: float) -> float:
        """Routed experts of a layer that `rows` rows meet, if each chooses by itself: E (1 - (1 - k/E)^rows)."""
        if not self.experts:
            return 0.0
        return self.experts * (1 - float((1 - self.chosen / self.experts) ** rows))

    def only(self, layers: int) -> ForwardWork:
        """Some layers of the average kind, with the same head: a draft layer is one."""
        share = layers / self.layers
        parts: dict[str, Any] = {x: getattr(self, x) * share for x in ("always", "expert", "kv")}
        parts["texts"] = tuple(kind.times(share) for kind in self.texts)
        stored = (self.always + self.expert * self.experts) * share
        return replace(self, layers=layers, stored=stored, state=0, request=0, **parts)


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
        return float(sum(astuple(self)))

    def __add__(self, other: Terms) -> Terms:
        return Terms(*map(add, astuple(self), astuple(other)))

    def __mul__(self, times: float) -> Terms:
        return Terms(*(a * times for a in astuple(self)))

    @property
    def binding(self) -> str:
        """The largest term."""
        parts: dict[str, float] = asdict(self)
        return max(parts, key=parts.__getitem__)


@dataclass(frozen=True, slots=True)
class Setting:
    """A model on cards, over which weights, keys and values and products are spread evenly, as groups of
    experts and tensor parallel attention do."""

    work: ForwardWork
    device: Device
    cards: int
    precision: Precision
    efficiency: Efficiency

    def of(self, work: ForwardWork) -> Setting:
        """The same for other work."""
        return replace(self, work=work)

    def decode(self, requests: float, rows: float, context: float) -> Terms:
        """Return the terms of a step; requests have `rows` rows (last token, drafted ones) after `context` tokens."""
        return self._terms(requests * rows, requests, requests * rows, context)

    def prefill(self, requests: float, tokens: float) -> Terms:
        """Prompts of `tokens` each in one step; a row sees half of its prompt on average. Collectives run
        beside products, and the longer of the two counts."""
        t = self._terms(requests * tokens, 0, requests, tokens / 2)
        slow = max(t.compute, t.links)
        return Terms(t.weights, t.kv, *((slow, 0.0) if slow == t.compute else (0.0, slow)), t.fixed)

    def _terms(self, rows: float, read: float, heads: float, context: float) -> Terms:
        """read: requests whose keys and values are read; heads: rows with logits; context: tokens that a row sees."""
        w, d, p, e = self.work, self.device, self.precision, self.efficiency
        memory = self.cards * d.bandwidth * e.memory
        weight = p.weight * (w.always + w.expert * w.distinct(rows)) + HEAD * w.head
        running = w.always + w.expert * w.chosen
        products = 2 * rows * running / (d.int8 if p.weights == "w8a8" else d.half)
        attention = sum(x.operations * (x.seen(context) + x.front) for x in w.texts)
        products += (2 * heads * w.head + rows * attention) / d.half
        numbers = sum(x.numbers * x.seen(context) for x in w.texts)
        crossing = (self.cards - 1) / self.cards * rows * w.hidden * ACTIVATION
        return Terms(
            weights=weight / memory,
            kv=read * (numbers * p.kv + 2 * w.state) / memory,
            compute=products / self.cards / e.compute,
            links=COLLECTIVES * w.layers * crossing / (d.link(self.cards) * e.link),
            fixed=w.layers * e.layer,
        )

    def memory(self, requests: float, context: float) -> float:
        """Bytes of each card: its part of weights, and of keys, values and running states of the requests."""
        w, p = self.work, self.precision
        ends = min(w.stored, 2 * w.head)  # embedding and head; a tied one lies there once as well
        inner = w.always + w.expert * w.experts
        weights = p.weight * inner + HEAD * min(ends, w.stored - inner)
        return (weights + requests * (context * w.kv * p.kv + w.request)) / self.cards
