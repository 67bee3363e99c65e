"""The indexer of sparse attention: what each row sees of a long text. DeepSeek-V3.2, arXiv 2512.02556."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.mixers.lines import MAX_SCORES, Lines, lines_seen
from fastslow.engine.model.mixers.rope import Rope, rotation
from fastslow.engine.model.norms import LayerNorm, Norm, NormModule, norm_tensors
from fastslow.engine.model.ops import Keys, Linear, Ops, wide
from fastslow.engine.model.parts import Step, WeightReader, too_small
from fastslow.engine.model.tensor_spec import TensorSpec, linear

KEY_NORM = LayerNorm(1e-6)


@dataclass(frozen=True, slots=True)
class Indexer:
    """A row that sees more than `most` keys sees those of the highest scores alone; of equal ones the earlier. A score
    is the sum of `heads` products of the row's queries, which come from its query latent, and one key of the token,
    cut off below 0, times a weight that the row has for each head.

    dim: of its keys, of which the first ones rotate as those of attention do, from this `layout` in files.
    norm: of keys. shared: it takes what the last layer before it chose that has none of its own to take."""

    heads: int
    dim: int
    most: int
    layout: str = "halves-first"
    norm: Norm = KEY_NORM
    shared: bool = False

    @property
    def beside(self) -> int:
        """Numbers of a token that it keeps."""
        return 0 if self.shared else self.dim

    def misfits(self, rope: Rope, query_latent: int) -> Iterator[str]:
        yield from too_small(
            index_n_heads=self.heads, index_topk=self.most, q_lora_rank=query_latent
        )
        if self.dim < rope.dim or self.dim % 2:
            yield f"index_head_dim {self.dim} must be even and at least {rope.dim}, the dims that rotate"

    def order(self, rope: Rope) -> list[int]:
        """Where the dims of a head lie in files."""
        return [*replace(rope, layout=self.layout).order, *range(rope.dim, self.dim)]

    def tensors(self, prefix: str, hidden: int, query_latent: int) -> Iterator[TensorSpec]:
        if self.shared:
            return
        own = f"{prefix}.self_attn.indexer"
        yield from linear(f"{own}.wq_b", self.heads * self.dim, query_latent, False)
        yield from linear(f"{own}.wk", self.dim, hidden, False)
        yield from norm_tensors(f"{own}.k_norm", self.norm, self.dim)
        yield from linear(f"{own}.weights_proj", self.heads, hidden, False)

    def load(self, prefix: str, reader: WeightReader, rope: Rope) -> IndexerModule:
        own, order = f"{prefix}.self_attn.indexer", self.order(rope)
        queries = reader.plain(f"{own}.wq_b.weight").unflatten(0, (self.heads, -1))[:, order]
        norm = reader.norm(f"{own}.k_norm", self.norm)
        bias = None if norm.bias is None else norm.bias[order]
        return IndexerModule(
            self,
            reader.ops,
            rope,
            reader.packed(queries.flatten(0, 1).contiguous()),
            reader.packed(reader.plain(f"{own}.wk.weight")[order].contiguous()),
            replace(norm, weight=norm.weight[order], bias=bias),
            reader.plain(f"{own}.weights_proj.weight", dtype=wide(reader.dtype)),
        )


@dataclass(slots=True)
class IndexerModule:
    """The indexer on plain torch. rope: of the attention around it. queries: of a query latent. head_weights: float32
    [heads, hidden], float64 for a float64 model."""

    indexer: Indexer
    ops: Ops
    rope: Rope
    queries: Linear
    keys: Linear
    key_norm: NormModule
    head_weights: Tensor

    def __call__(
        self, x_PH: Tensor, queries_PI: Tensor, kv: KVStorage, n: int, step: Step, group: int
    ) -> Sequence[Lines]:
        """Write the keys of rows [P, hidden] at their slots; gives what rows see. queries_PI: their query latents."""
        ops, most, k_SKD, where = self.ops, self.indexer.most, kv.v[n], kv.pages_of(n)
        keys = self.key_norm(ops.linear(x_PH, *self.keys))
        step.store(k_SKD, self._turned(keys[:, None], step).to(x_PH.dtype), where)
        seen = lines_seen(step, group, 0, where)
        if all(lines.most <= most for lines in seen):
            return seen
        queries = ops.linear(queries_PI, *self.queries).view(len(x_PH), self.indexer.heads, -1)
        queries = self._turned(queries, step)
        weights = ops.linear(x_PH.to(queries.dtype), self.head_weights)
        return [x if x.most <= most else self._narrowed(x, queries, weights, k_SKD) for x in seen]

    def _turned(self, x_PND: Tensor, step: Step) -> Tensor:
        first, rest = x_PND.to(wide(step.dtype)).tensor_split([self.rope.dim], -1)
        return torch.cat((self.ops.rotate(first, *rotation(self.rope, step)), rest), -1)

    def _narrowed(
        self, lines: Lines, queries_PND: Tensor, weights_PN: Tensor, keys_SKD: Tensor
    ) -> Lines:
        bias, block, most = lines.keys.bias, self.ops.block, self.indexer.most
        blocks = bias.shape[2]
        q, w = queries_PND, weights_PN
        if lines.gather is not None:
            q, w = q.index_select(0, lines.gather), w.index_select(0, lines.gather)
        q, w = q.unflatten(0, (lines.count, -1)), w.unflatten(0, (lines.count, -1))
        rows = q.shape[1]
        some = keys_SKD[lines.keys.slots, 0].to(q.dtype).unflatten(0, (lines.count, -1))
        some = F.pad(some, (0, 0, 0, blocks * block - some.shape[1])).unflatten(1, (blocks, block))
        group = bias.shape[3] // rows
        hidden = bias[:, 0, :, ::group].transpose(1, 2).flatten(2) < 0
        ranked = self._scores(q, w, some).masked_fill_(hidden, -torch.inf)
        best = ranked.sort(dim=-1, descending=True, stable=True).indices[..., :most]
        unseen = torch.ones_like(hidden).scatter_(-1, best, False)
        unseen = unseen.unflatten(2, (blocks, block)).transpose(1, 2)
        unseen = unseen.repeat_interleave(group, dim=2)[:, None]
        return replace(lines, keys=Keys(lines.keys.slots, bias.masked_fill(unseen, -torch.inf)))

    def _scores(self, q_LPND: Tensor, w_LPN: Tensor, keys_LBSD: Tensor) -> Tensor:
        """[L, P, keys]: whole blocks of keys at once, and heads added two by two, so that no bit depends on others."""
        count, rows, heads, dim = q_LPND.shape
        q, found = q_LPND.reshape(count, 1, rows * heads, dim), list[Tensor]()
        block = keys_LBSD.shape[2]
        for some in keys_LBSD.split(max(1, MAX_SCORES // (count * rows * heads * block)), 1):
            each = q.expand(-1, some.shape[1], -1, -1).flatten(0, 1)
            x = torch.bmm(each, some.flatten(0, 1).transpose(1, 2)).relu_()
            x = x.view(count, -1, rows, heads, block).mul_(w_LPN[:, None, :, :, None])
            while (size := x.shape[3]) > 1:
                x = F.pad(x, (0, 0, 0, size % 2))
                x = x[:, :, :, ::2] + x[:, :, :, 1::2]
            found.append(x[:, :, :, 0].transpose(1, 2).flatten(2))
        return torch.cat(found, -1)
