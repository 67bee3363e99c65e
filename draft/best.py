"""Several drafters, of which the one that promises most speaks, per request and step."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch

from fastslow.draft.columns import columns, union
from fastslow.engine.types import Draft, Drafter, RequestView, Tree, Verdict

PRIOR = 1.0  # tokens that a drafter is thought to bring before it has spoken
RATE = 0.1  # weight of the newest proposal


@dataclass(slots=True)
class _Record:
    """What one request's drafters brought.

    gains: tokens accepted of a proposal, running means. trust: accepted over promised, where scores
    promise something.
    """

    gains: list[float]
    trust: list[float]
    spoke: int = -1
    promised: float = 0.0
    read: int = 0  # tokens of the text when it spoke


@dataclass(slots=True)
class Best:
    """`Best(a, b)`: a speaks where its proposal promises at least what b has brought on average.

    The cheaper drafters come first: those behind are asked only where they may bring more, so one
    that is never worth its time is hardly ever run. A drafter's promise is the sum of its nodes'
    scores, corrected by how such promises were kept in this request, or what its proposals have
    brought where it gives no scores. No sampled token is looked at, beyond what scores may know.

    Args:
        drafters: in the order in which they are asked; at least one.
    """

    drafters: Sequence[Drafter]
    features: tuple[int, ...] = ()
    _records: dict[int, _Record] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.drafters:
            raise ValueError("Best() needs at least one drafter")
        self.features = union(self.drafters)

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> Draft:
        trees = [Tree()] * len(batch)
        records = [self._record(request) for request in batch]
        for record, request in zip(records, batch):
            record.spoke, record.promised, record.read = -1, 0.0, len(request.tokens)
        for i, drafter in enumerate(self.drafters):
            left = [
                0 if record.spoke >= 0 and record.promised >= record.gains[i] else most
                for record, most in zip(records, nodes)
            ]
            draft = drafter.propose(batch, left)  # 0 nodes lets it read the text all the same
            for b, record in enumerate(records):
                tree = draft.tree(b)
                if not tree.tokens:
                    continue
                promise = record.gains[i]
                if tree.scores is not None:
                    promise = sum(tree.scores) * record.trust[i]
                if record.spoke < 0 or promise > record.promised:
                    trees[b], record.spoke, record.promised = tree, i, promise
        return Draft.of(trees)

    def commit(
        self, batch: Sequence[RequestView], verdict: Verdict, features: torch.Tensor | None
    ) -> None:
        for drafter in self.drafters:
            drafter.commit(batch, verdict, columns(features, self.features, drafter.features))
        for request, path in zip(batch, verdict.paths, strict=True):
            record = self._records.get(request.id)
            if record is None or record.spoke < 0:
                continue
            i = record.spoke
            record.gains[i] += RATE * (len(path) - record.gains[i])
            if record.promised > 0:
                kept = min(len(path) / record.promised * record.trust[i], 1.5)
                record.trust[i] += RATE * (kept - record.trust[i])
            record.spoke = -1

    def release(self, requests: Collection[int]) -> None:
        for drafter in self.drafters:
            drafter.release(requests)
        for request in requests:
            self._records.pop(request, None)

    def _record(self, request: RequestView) -> _Record:
        if request.id not in self._records:
            count = len(self.drafters)
            self._records[request.id] = _Record([PRIOR] * count, [1.0] * count)
        return self._records[request.id]
