"""A rank's shard of a decoder: the layers of `model.decoder`, with collectives between, rows divided
among ranks before and results gathered after; and the weights of a shard, read as slices."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.backends.torch.weights import LayerModule, Weights
from fastslow.engine.checkpoint.checkpoint import Checkpoint
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.base import best_tokens
from fastslow.engine.model.ffn.dense import MlpModule
from fastslow.engine.model.ffn.experts import ExpertsModule
from fastslow.engine.model.ffn.router import GroupRouter
from fastslow.engine.model.mixers.grouped import GroupedModule
from fastslow.engine.model.ops import Ops, Read, soft_cap, wide
from fastslow.engine.model.parts import Step, WeightReader
from fastslow.engine.model.tensor_spec import TensorSpec
from fastslow.engine.model.tensors import mtp_specs, tensor_specs
from fastslow.engine.parallel.collectives import Collectives
from fastslow.engine.parallel.sharding import RankShard
from fastslow.engine.rows import Rows
from fastslow.engine.types import Ints, ModelOutput

_EXPERT = re.compile(r"(.*\.experts\.)(\d+)(\..*)")


class ShardReader:
    """Reads the tensors of a rank's local config: what it asks for whole is this rank's slice.

    read: gives a slice of a tensor of the whole model."""

    def __init__(self, shard: RankShard, read: Callable[[str, tuple[slice, ...]], Tensor]) -> None:
        self._shard = shard
        self._read = read
        self._specs = {spec.name: spec for spec in specs_of(shard)}

    def __call__(self, name: str) -> Tensor:
        """A tensor by its local name, in which experts are counted from the first held."""
        if match := _EXPERT.fullmatch(name):
            before, number, after = match.groups()
            name = f"{before}{int(number) + self._shard.experts.start}{after}"
        spec = self._specs[name]
        parts = [self._read(name, part) for part in self._shard.parts(spec)]
        if not parts:
            return torch.zeros(spec.shape)  # a bias that another rank adds
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def specs_of(shard: RankShard) -> list[TensorSpec]:
    """All tensors of the whole model."""
    return [*tensor_specs(shard.config), *mtp_specs(shard.config)]


@contextmanager
def shard_reader(checkpoint: Checkpoint, shard: RankShard, progress: bool) -> Iterator[ShardReader]:
    held = sum(len(shard.parts(spec)) for spec in specs_of(shard))
    with checkpoint.reader(progress, held) as read:
        yield ShardReader(shard, read)


def shard_weights(
    shard: RankShard, ops: Ops, dtype: torch.dtype, device: torch.device, read: Read
) -> Weights:
    """The weights of a rank's shard; `read` as `ShardReader` gives them."""
    weights = Weights(shard.local, WeightReader(ops, dtype, device, read))
    for layer in (*weights.layers, *(head.layer for head in weights.mtp)):
        mixer, ffn = layer.mixer, layer.ffn
        if shard.rank % shard.attention and isinstance(mixer, GroupedModule):
            mixer.out = mixer.out._replace(bias=None)
        if isinstance(ffn, MlpModule) and shard.rank:
            ffn.down = ffn.down._replace(bias=None)
        if not isinstance(ffn, ExpertsModule):
            continue
        if shard.inner:
            ffn.down = [matrix._replace(bias=None) for matrix in ffn.down]
        if shard.parallel.ep > 1 and isinstance(ffn.ffn.router, GroupRouter):
            assert shard.alike.routed is not None
            ffn.ffn = replace(ffn.ffn, router=shard.alike.routed.router)
            ffn.held_groups = shard.groups
        elif shard.parallel.ep > 1:
            ffn.held_experts = shard.experts
    return weights


@dataclass(frozen=True, slots=True)
class RowPartition:
    """Places of the T rows of a step among the P = each * ranks rows that all ranks hold.

    Data-parallel ranks lie in a row, each with its requests' rows and then padding; rank r keeps rows
    r * each .. (r + 1) * each of the residual stream. places: int64 [T], where each row lies. tokens, groups:
    int64 [P]; padding is token 0 and runs no routed expert. own: this data-parallel rank's rows, slots
    counted from its first; None = it has none."""

    each: int
    places: Ints
    tokens: Ints
    groups: Ints
    own: Rows | None

    @classmethod
    def of(cls, rows: Rows, shard: RankShard, dp_slots: int) -> RowPartition:
        """Every row goes to the data-parallel rank that holds its slots, `dp_slots` on each."""
        sizes = np.diff(rows.starts)
        dp_ranks = rows.slots[rows.starts[:-1]] // dp_slots  # every request has a row
        dp_of_row = np.repeat(dp_ranks, sizes)
        counts = np.bincount(dp_ranks, weights=sizes, minlength=shard.dp_ranks).astype(np.int64)
        each = -(-int(counts.max()) // shard.attention)
        order = np.argsort(dp_of_row, kind="stable")
        nth = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        places = np.empty(len(order), dtype=np.int64)
        places[order] = dp_of_row[order] * each * shard.attention + nth
        size = each * shard.parallel.ranks
        tokens, groups = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
        tokens[places], groups[places] = rows.tokens, rows.groups
        own = _only(rows, np.flatnonzero(dp_ranks == shard.dp_rank), shard.dp_rank * dp_slots)
        return cls(each, places, tokens, groups, own)

    def holders(self, rows: Ints) -> tuple[Ints, Ints]:
        """Of rows of the step: the rank that keeps each, and where among that rank's rows."""
        at = self.places[rows]
        return at // self.each, at % self.each


def _only(rows: Rows, requests: Ints, first_slot: int) -> Rows | None:
    if not len(requests):
        return None
    spans = [(int(rows.starts[b]), int(rows.starts[b + 1])) for b in requests]
    kept = np.concatenate([np.arange(a, b) for a, b in spans])
    return Rows(
        tokens=rows.tokens[kept],
        positions=rows.positions[kept],
        slots=rows.slots[kept] - first_slot,
        parents=rows.parents[kept],
        groups=rows.groups[kept],
        starts=np.cumsum([0, *(b - a for a, b in spans)]),
        outputs=np.empty(0, dtype=np.int64),
        only_best=np.empty(0, dtype=np.bool_),
        feature_rows=np.empty(0, dtype=np.int64),
        contexts=tuple(rows.contexts[b] - first_slot for b in requests),
        max_len=rows.max_len[requests],
        running=rows.running and tuple(rows.running[b] for b in requests),
    )


@dataclass(slots=True)
class ShardDecoder:
    """The shard of a decoder that one rank runs (H2P; Pangu Pro MoE, arXiv 2505.21411).

    The residual stream is divided by rows: a rank keeps, norms and adds only its own. Around attention the
    ranks of one copy of it (`dp_group`) gather their normed rows and scatter the partial sums of their heads;
    around the MLP all ranks do. The head is cut by vocabulary."""

    shard: RankShard
    weights: Weights
    dp_group: Collectives
    everyone: Collectives

    @torch.inference_mode()
    def forward(
        self, rows: Rows, kv: KVStorage, layers: Sequence[int], features: Sequence[int]
    ) -> ModelOutput | None:
        """As `Decoder.forward`, on all ranks at once with the same rows; None but on rank 0.

        kv: this rank's heads, slots of its data-parallel rank. layers: those that run."""
        partition = RowPartition.of(rows, self.shard, kv.slots)
        x_nH = self._embed(partition)
        if (streams := self.weights.config.streams) is not None:
            x_nH = x_nH.repeat(1, streams.count)
        step, w, taken = self._step(partition), self.weights, dict[int, Tensor]()
        (wanted, mine), (looked, mine_seen) = self._mine(partition, rows)
        for n in layers:
            x_nH = self._run(w.layers[n], x_nH, kv, n, partition, step)
            if n in features:
                taken[n] = w.one_stream(x_nH.index_select(0, mine_seen))
        known = None
        if features:
            known = self._features(torch.cat([taken[n] for n in features], -1), looked)
        last_mH = w.norm(w.one_stream(x_nH.index_select(0, mine)))
        return self._output(last_mH, known, wanted, rows.only_best)

    @torch.inference_mode()
    def draft(
        self, rows: Rows, inputs: Tensor | None, kv: KVStorage, head: int
    ) -> ModelOutput | None:
        """As `MtpModel.forward`, on all ranks at once; None but on rank 0, which alone has the inputs of rows."""
        partition, w = RowPartition.of(rows, self.shard, kv.slots), self.weights
        mtp, embedded = w.mtp[head], self._embed(partition)
        states = embedded.new_zeros(len(partition.tokens), embedded.shape[1])
        if inputs is not None:
            states[torch.from_numpy(partition.places).to(w.device)] = inputs.to(w.device, w.dtype)
        states = mtp.hidden_norm(self.everyone.reduce_scatter(states))
        x_nH = mtp.enter(mtp.embedding_norm(embedded), states)
        n, step = len(w.config.layers) + head, self._step(partition)
        last_nH = mtp.norm(self._run(mtp.layer, x_nH, kv, n, partition, step))
        (wanted, mine), (looked, mine_seen) = self._mine(partition, rows)
        seen = self._features(last_nH.index_select(0, mine_seen), looked)
        return self._output(last_nH.index_select(0, mine), seen, wanted, rows.only_best)

    def _mine(self, partition: RowPartition, rows: Rows) -> list[tuple[Ints, Tensor]]:
        """Of outputs, and of rows whose features are wanted: the rank that keeps each, and this rank's own ones."""
        both = (partition.holders(some) for some in (rows.outputs, rows.feature_rows))
        rank, device = self.shard.rank, self.weights.device
        return [(x, torch.from_numpy(at[x == rank]).to(device)) for x, at in both]

    def _run(
        self,
        layer: LayerModule,
        x_nH: Tensor,
        kv: KVStorage,
        n: int,
        partition: RowPartition,
        step: Step | None,
    ) -> Tensor:
        """This rank's rows after a layer, whose rows of keys are those of layer `n` of the storage."""
        multiple = self.weights.ops.rows

        def attend(fresh_nH: Tensor) -> Tensor:
            fresh_PH = self.dp_group.all_gather(fresh_nH)
            if step is None:
                part_PH = torch.zeros_like(fresh_PH)  # no request of this rank runs
            else:
                part_PH = layer.mixer(_pad(fresh_PH, multiple), kv, n, step)
            return self.dp_group.reduce_scatter(part_PH[: len(fresh_PH)])

        def mlp(fresh_nH: Tensor) -> Tensor:
            fresh_PH = self.everyone.all_gather(fresh_nH)
            padded_PH = _pad(fresh_PH, multiple)
            groups = np.pad(partition.groups, (0, len(padded_PH) - len(fresh_PH)))
            part_PH = layer.ffn(padded_PH, groups)[: len(fresh_PH)]
            return self.everyone.reduce_scatter(part_PH)

        mixed_nH = layer.connect(x_nH, "mixer", attend)
        return layer.whole_norm(layer.connect(mixed_nH, "ffn", mlp))

    def _embed(self, partition: RowPartition) -> Tensor:
        """[n, H]: every rank looks up the tokens of its vocabulary, the rest are zeros."""
        ids = self.shard.vocabulary()
        held = (partition.tokens >= ids.start) & (partition.tokens < ids.stop)
        table = self.weights.embedding
        at = torch.from_numpy(np.where(held, partition.tokens - ids.start, 0)).to(table.device)
        rows_PH = self.weights.embed(at)
        rows_PH.mul_(torch.from_numpy(held).to(table.device, table.dtype)[:, None])
        return self.everyone.reduce_scatter(rows_PH)

    def _step(self, partition: RowPartition) -> Step | None:
        if partition.own is None:
            return None
        w, size = self.weights, partition.each * self.shard.attention
        padded = size + -size % w.ops.rows
        return Step(partition.own, padded, w.ops, w.dtype, w.device)

    def _output(
        self,
        mine_mH: Tensor,
        features_SF: Tensor | None,
        holders: Ints,
        only_best: NDArray[np.bool_],
    ) -> ModelOutput | None:
        """On rank 0. mine_mH: wanted rows that this rank keeps, normed. holders: of all M, the rank that keeps each."""
        w = self.weights
        if not len(holders):
            none = np.empty(0, dtype=np.int64)
            first = self.shard.rank == 0
            return ModelOutput(self._no_logits(), features_SF, none) if first else None
        most, places = _laid(holders)
        padded = F.pad(mine_mH, (0, 0, 0, most - len(mine_mH)))
        last_MH = self.everyone.all_gather(padded)[torch.from_numpy(places).to(mine_mH.device)]
        if only_best.all():
            return self._best(last_MH, features_SF)
        logits_MV = self._logits(last_MH)
        parts = self.everyone.gather(logits_MV)
        if parts is None:
            return None
        whole = torch.cat(parts, -1)[:, : w.config.vocab_size].to(wide(w.dtype))
        best = best_tokens(whole, only_best | bool(w.config.logit_cap))
        return ModelOutput(soft_cap(whole, w.config.logit_cap), features_SF, best)

    def _features(self, mine_sF: Tensor, holders: Ints) -> Tensor | None:
        """[S, F] on rank 0, None on the others; the arguments as in `_output`."""
        if not len(holders):
            return mine_sF if self.shard.rank == 0 else None
        most, places = _laid(holders)
        padded = F.pad(mine_sF, (0, 0, 0, most - len(mine_sF)))
        parts = self.everyone.gather(padded)
        at = torch.from_numpy(places).to(mine_sF.device)
        return None if parts is None else torch.cat(parts).index_select(0, at)

    def _logits(self, last_MH: Tensor) -> Tensor:
        """[M, share of V] in the model's dtype; the last share is padded."""
        size = self.shard.vocabulary_size
        logits = self.weights.ops.linear(last_MH, *self.weights.head)
        return F.pad(logits, (0, size - logits.shape[1]))

    def _best(self, last_MH: Tensor, features: Tensor | None) -> ModelOutput | None:
        """Every rank finds the best of its vocabulary: three numbers a row instead of V."""
        ids = self.shard.vocabulary()
        logits = self._logits(last_MH)[:, : len(ids)]
        top = logits.max(-1)
        found = (top.values, top.indices + ids.start, logits.isfinite().all(-1))
        found_M3 = torch.stack([part.double() for part in found], -1)
        parts = self.everyone.gather(found_M3)
        if parts is None:
            return None
        found_RM3 = torch.stack(parts).cpu().numpy()
        first = found_RM3[:, :, 0].argmax(0)  # the lower ids on a tie
        tokens = np.take_along_axis(found_RM3[:, :, 1], first[None], 0)[0].astype(np.int64)
        best = np.where(found_RM3[:, :, 2].all(0), tokens, -1)
        return ModelOutput(self._no_logits(), features, best)

    def _no_logits(self) -> Tensor:
        w = self.weights
        return torch.empty(0, w.config.vocab_size, dtype=wide(w.dtype), device=w.device)


def _laid(holders: Ints) -> tuple[int, Ints]:
    """The most rows of a rank, and where each row lies once that number of every rank is gathered."""
    nth = np.empty(len(holders), dtype=np.int64)  # how many before it lie on the same rank
    for rank in np.unique(holders):
        own = holders == rank
        nth[own] = np.arange(own.sum())
    most = int(nth.max()) + 1
    return most, holders * most + nth


def _pad(x_PH: Tensor, multiple: int) -> Tensor:
    return F.pad(x_PH, (0, 0, 0, -len(x_PH) % multiple))
