"""Sharding of a model among ranks: how many, and which heads, groups, parts of experts and requests are each one's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import gcd
from typing import Annotated

from pydantic import Field, StrictInt

from fastslow.engine.backends.alike import RANKS, AlikeLayers, grouped, unlike
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.router import GroupRouter
from fastslow.engine.model.mixers.latent import LatentAttention
from fastslow.engine.model.shape import Layer
from fastslow.engine.model.tensor_spec import ShardAxis, TensorSpec
from fastslow.engine.params import Number, Params, nearest


class Parallel(Params):
    """ep * tp * dp ranks share one model.

    Attention is cut by heads over ep * tp ranks, or over tp where the heads do not divide, and runs that many
    times side by side, each on other requests. Routed experts are cut over ep, by whole groups, and inside
    each expert over tp * dp; shared experts, dense MLPs, embedding and head over all ranks. Pangu Pro MoE's
    layout on eight devices (H2P, arXiv 2505.21411) is Parallel(ep=4, dp=2)."""

    ep: Annotated[StrictInt, Field(ge=1)] = Field(
        default=1,
        description="expert parallel: ranks among which the experts are divided, by whole groups",
    )
    tp: Annotated[StrictInt, Field(ge=1)] = Field(
        default=1, description="tensor parallel: ranks that share every head split and every expert"
    )
    dp: Annotated[StrictInt, Field(ge=1)] = Field(
        default=1, description="data parallel: copies of attention, each with other requests"
    )
    timeout: Annotated[Number, Field(gt=0)] = Field(
        default=300.0, description="seconds that a rank waits for another one inside a step"
    )

    @property
    def ranks(self) -> int:
        """The number of processes that it takes."""
        return self.ep * self.tp * self.dp

    @classmethod
    def parse(cls, text: str) -> Parallel:
        """From "ep=8,tp=1,dp=1"; what is not named is 1. ValueError in one sentence."""
        known = ("ep", "tp", "dp")
        fields: dict[str, int] = {}
        for part in text.split(","):
            name, _, value = part.partition("=")
            name = name.strip()
            if name not in known:
                raise ValueError(f"parallel={text!r} names {name!r}{nearest(name, known)}")
            if name in fields:
                raise ValueError(f"parallel={text!r} names {name} twice")
            if not value.strip().isdecimal():
                raise ValueError(f"parallel={text!r}: {name} must be a whole number of at least 1")
            fields[name] = int(value)
        return cls(**fields)

    def __str__(self) -> str:
        return f"ep={self.ep},tp={self.tp},dp={self.dp}"


@dataclass(frozen=True, slots=True)
class RankShard:
    """Shard of one rank among those of a `Parallel`, for one model: numbered (dp, ep, tp), tp fastest.

    Every data-parallel rank is a copy of attention with the KV of its requests, on `attention` ranks."""

    config: ModelConfig
    parallel: Parallel
    rank: int
    alike: AlikeLayers  # what the layers of the whole model have in common

    @classmethod
    def all(cls, config: ModelConfig, parallel: Parallel) -> list[RankShard]:
        """Every rank's, without layers for multi-token prediction that differ in more than ranks know. ValueError in one
        sentence if the model cannot be shared so."""
        _check(config, parallel)
        if unlike(config.with_mtp, RANKS) is not None:
            config = replace(config, mtp=None)
        alike = _alike(config.with_mtp)
        return [cls(config, parallel, rank, alike) for rank in range(parallel.ranks)]

    @property
    def attention(self) -> int:
        """Ranks that share the heads of one copy of attention."""
        return attention_ranks(self.alike, self.parallel)

    @property
    def dp_ranks(self) -> int:
        return self.parallel.ranks // self.attention

    @property
    def dp_rank(self) -> int:
        return self.rank // self.attention

    @property
    def heads(self) -> int:
        return self.alike.attention.heads // self.attention

    @property
    def kv_heads(self) -> int:
        """KV heads of this rank; where there are more ranks than heads, several hold the same."""
        return max(1, self.alike.attention.kv_heads // self.attention)

    @property
    def groups(self) -> range:
        """Routed groups whose experts this rank holds."""
        size = _groups(self.alike) // self.parallel.ep
        first = self._expert_place * size
        return range(first, first + size)

    @property
    def experts(self) -> range:
        """Experts that this rank holds, whole or in part."""
        size = _experts(self.alike) // self.parallel.ep
        return range(self._expert_place * size, (self._expert_place + 1) * size)

    @property
    def local(self) -> ModelConfig:
        """The config of what this rank holds and runs."""
        inner, ranks = self.parallel.tp * self.parallel.dp, self.parallel.ranks

        def cut(n: int, layer: Layer) -> Layer:
            if isinstance(layer.mixer, LatentAttention):
                layer = replace(layer, mixer=replace(layer.mixer, heads=self.heads))
            else:
                heads = replace(grouped(layer), heads=self.heads, kv_heads=self.kv_heads)
                layer = replace(layer, mixer=heads)
            ffn = layer.ffn
            if isinstance(ffn, DenseMlp):
                return replace(layer, ffn=replace(ffn, width=ffn.width // ranks))
            assert isinstance(ffn, RoutedExperts)
            shared, router = ffn.shared, ffn.router
            routed = RoutedExperts(
                GroupRouter(len(self.groups)) if isinstance(router, GroupRouter) else router,
                len(self.experts),
                replace(ffn.expert, width=ffn.expert.width // inner),
                None if shared is None else replace(shared, width=shared.width // ranks),
            )
            return replace(layer, ffn=routed)

        return self.config.each(cut).each_head(cut)

    @property
    def inner(self) -> int:
        """This rank's place among those that share its experts, each of which has a part of each."""
        tp = self.parallel.tp
        return self.rank // (tp * self.parallel.ep) * tp + self.rank % tp

    def vocabulary(self) -> range:
        """Token ids whose embedding and logits this rank holds: even shares, the last may be short."""
        size = self.vocabulary_size
        last = self.config.vocab_size
        return range(min(self.rank * size, last), min((self.rank + 1) * size, last))

    @property
    def vocabulary_size(self) -> int:
        return -(-self.config.vocab_size // self.parallel.ranks)

    def parts(self, spec: TensorSpec) -> list[tuple[slice, ...]]:
        """Return this rank's parts of a tensor, below each other along the cut axis; empty = nothing."""
        (over, axis), shape = spec.rule, spec.shape
        whole = tuple(slice(0, size) for size in shape)
        if spec.expert is not None and spec.expert not in self.experts:
            return []
        place = {
            ShardAxis.FIRST_OF_ALL: self.rank,
            ShardAxis.FIRST_OF_HEADS: self.rank % self.attention,
            ShardAxis.FIRST_OF_EXPERTS: self.inner,
        }.get(over, 0)
        if place:
            return []
        if axis is None:
            return [whole]
        return [
            (*whole[:axis], slice(first, last), *whole[axis + 1 :])
            for first, last in self._ranges(spec.name, over, shape[axis])
        ]

    def _ranges(self, name: str, over: ShardAxis, size: int) -> list[tuple[int, int]]:
        a, at = self.alike.attention, self.rank % self.attention
        if over is ShardAxis.HEADS:
            return [_even(size, self.attention, at)]
        if over is ShardAxis.KV_HEADS:
            return [self._kv_range(0, size)]
        if over is ShardAxis.QKV:
            queries, keys = a.query_width, a.key_width
            return [
                _even(queries, self.attention, at),
                self._kv_range(queries, keys),
                self._kv_range(queries + keys, size - queries - keys),
            ]
        if over is ShardAxis.EXPERTS:
            return [_even(size, self.parallel.tp * self.parallel.dp, self.inner)]
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            ids = self.vocabulary()
            return [(ids.start, ids.stop)]
        return [_even(size, self.parallel.ranks, self.rank)]

    def _kv_range(self, start: int, size: int) -> tuple[int, int]:
        """Of all KV heads, `size` numbers from `start` on."""
        heads = self.alike.attention.kv_heads
        unit = size // heads
        first = self.rank % self.attention * heads // self.attention
        return start + first * unit, start + (first + self.kv_heads) * unit

    @property
    def _expert_place(self) -> int:
        return self.rank // self.parallel.tp % self.parallel.ep


def attention_ranks(alike: AlikeLayers, parallel: Parallel) -> int:
    """Ranks that share the heads of attention: ep * tp, or tp where the heads do not divide by it."""
    a = alike.attention
    for ranks in (parallel.ep * parallel.tp, parallel.tp):
        even = a.kv_heads % ranks == 0 or ranks % a.kv_heads == 0
        if a.heads % ranks == 0 and even:
            return ranks
    raise ValueError(
        f"tp={parallel.tp} does not divide the {a.heads} heads over {a.kv_heads} KV heads"
    )


def usual(config: ModelConfig, ranks: int) -> Parallel:
    """The layout of a number of ranks: as many as can hold whole groups of experts, or experts where there are no
    groups, the rest by tensors. ValueError: neither heads nor rows can be shared so."""
    alike = _alike(config)
    ep = gcd(_groups(alike) or _experts(alike) or 1, ranks)
    choices = (Parallel(ep=ep, tp=ranks // ep), Parallel(ep=ep, dp=ranks // ep))
    for choice in choices:
        try:
            _check(config, choice)
        except ValueError as error:
            why = error
        else:
            return choice
    raise ValueError(f"{ranks} ranks cannot share this model: {why}")


def _alike(config: ModelConfig) -> AlikeLayers:
    """The common parts of layers. A latent is one key of all heads, which every rank has."""
    if (why := unlike(config, RANKS)) is not None:
        raise ValueError(f"several ranks cannot share {config.architecture}: {why}")
    alike = AlikeLayers.of(config, RANKS)
    if alike.latent is None:
        return alike
    return replace(alike, attention=replace(alike.attention, kv_heads=1))


def _check(config: ModelConfig, parallel: Parallel) -> None:
    together = attention_ranks(_alike(config), parallel)
    if config.state_layout.running and together < parallel.ranks:
        raise ValueError(
            f"{parallel} runs attention side by side, and this model has running states: use ep or tp "
            "that divides its heads"
        )
    if wrong := next(_misfits(config, parallel), None):
        raise ValueError(wrong)


def _misfits(config: ModelConfig, parallel: Parallel) -> Iterator[str]:
    ep, inner, ranks = parallel.ep, parallel.tp * parallel.dp, parallel.ranks
    alike = _alike(config)
    groups, experts = _groups(alike), _experts(alike)
    if ep > 1 and not experts:
        yield f"ep={ep} needs a model with routed experts, this one is dense: use tp or dp"
    if groups % ep:
        yield f"ep={ep} does not divide the {groups} groups of experts: a rank holds whole ones"
    if experts % ep:
        yield f"ep={ep} does not divide the {experts} experts: a rank holds whole ones"
    for name, size in alike.mlps.items():
        inside = name == "moe_intermediate_size"
        by, count = ("tp * dp", inner) if inside else ("the ranks", ranks)
        if size % count:
            yield f"{name} {size} must be a multiple of {by}, which are {count}"
    if config.vocab_size <= (ranks - 1) * -(-config.vocab_size // ranks):
        yield f"vocab_size {config.vocab_size} is too small for {ranks} ranks"


def _experts(alike: AlikeLayers) -> int:
    return alike.routed.experts if alike.routed else 0


def _groups(alike: AlikeLayers) -> int:
    router = alike.routed and alike.routed.router
    return router.groups if isinstance(router, GroupRouter) else 0


def _even(size: int, parts: int, part: int) -> tuple[int, int]:
    each = size // parts
    return part * each, (part + 1) * each
