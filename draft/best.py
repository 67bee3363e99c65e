"""Several drafters, each asked where it pays, whose proposals are drafted side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from fastslow.draft.columns import columns, show, union, wanted
from fastslow.draft.gains import OLD_ALL, OLD_OWN, PATIENCE, Case, Known
from fastslow.draft.graft import follow, graft
from fastslow.engine.types import AcceptResult, Drafter, MarginalValue, RequestView, Tree

WAKING = 4  # steps before it is tried in which its features are gathered
BEGUN = 3.0  # proposals of its own as which those of others count for a new request
BESIDES = 1.5  # what drafts take in all, over the time of asking: features, larger steps' Python
DEAR = 0.4  # tokens that a row takes, above which only the first, cheapest drafter is asked
FREE = MarginalValue(1.0, 0.0)


class _Said(NamedTuple):
    """What one drafter proposed.

    by: the drafter. total: tokens that it thinks will be accepted; rows: what its nodes take, in
    tokens; promise: the one less the other, or what it usually brings where it gives no scores.
    """

    by: int
    tree: Tree
    total: float
    rows: float
    promise: float


@dataclass(slots=True)
class _Record:
    """What one request's drafters brought, case by case, and what was said in this step.

    promised: tokens, less what their rows take, of the proposal that promises most.
    """

    cases: dict[int, list[Known]] = field(default_factory=dict)
    known: list[Known] = field(default_factory=list)  # in this step's case
    said: list[_Said] = field(default_factory=list)
    promised: float = 0.0


@dataclass(slots=True)
class Best:
    """`Best([a, b])`: b is asked, too, where it would bring more than a promises; both are drafted.

    The cheaper drafters come first. One is asked where what it has brought, less what those before
    it promise now, is worth its time and its rows. One that is worth it for no request is tried for
    one of them after some steps, and more and more of them. So a drafter that never pays is hardly
    ever run, and its features are not gathered. A drafter's promise is the sum of its nodes' scores,
    corrected by how such promises were kept in this request, or what its proposals have brought
    where it gives no scores. No sampled token is looked at, beyond what scores may know.

    Trees of chosen nodes with scores are grafted into one; of others the one that promises most is
    drafted. Each drafter is judged by what its own tree held of what was accepted.

    Where rows are dear, as in large batches, the first drafter alone is asked: what others bring more
    makes the fast requests of a batch faster and every step slower.

    Args:
        drafters: in the order in which they are asked; at least one.
        worth: what a token and a row are worth in the batch's step; None = drafters and rows cost
            nothing.
        clock: seconds.

    Attributes:
        features: the layers that those read who draft now or soon.
    """

    drafters: Sequence[Drafter]
    worth: Callable[[Sequence[RequestView]], MarginalValue] | None = None
    clock: Callable[[], float] = time.perf_counter
    features: tuple[int, ...] = ()
    _records: dict[int, _Record] = field(default_factory=dict)
    _cases: dict[int, Case] = field(default_factory=dict)  # by the bits of a batch's size
    _case: Case = field(default_factory=lambda: Case.of(0))  # this step's

    def __post_init__(self) -> None:
        if not self.drafters:
            raise ValueError("Best() needs at least one drafter")
        self.features = union(self.drafters)

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        trees = [Tree()] * len(batch)
        bits = len(batch).bit_length()
        case = self._case = self._cases.setdefault(bits, Case.of(len(self.drafters)))
        records = [self._record(request, bits) for request in batch]
        for record in records:
            record.said, record.promised = [], 0.0
        worth = FREE if self.worth is None else self.worth(batch)
        awake = []
        for i, drafter in enumerate(self.drafters):
            asked = self._asked(i, records, nodes, worth)
            if any(asked):
                self._ask(i, batch, asked, worth, records)
            if case.trials[i].wait <= WAKING:
                awake.append(drafter)
        self.features = union(awake)
        for b, (record, most) in enumerate(zip(records, nodes)):
            if record.said:
                record.said = _drafted(record.said)
                trees[b] = graft([(said.by, said.tree) for said in record.said], most)
        return trees

    def commit(
        self, batch: Sequence[RequestView], verdict: AcceptResult, features: torch.Tensor | None
    ) -> None:
        for drafter in self.drafters:
            there = features is not None and set(drafter.features) <= set(self.features)
            own = columns(features, self.features, drafter.features) if there else None
            drafter.commit(batch, verdict, own)
        for request, path, tokens in zip(batch, verdict.paths, verdict.tokens, strict=True):
            record = self._records.get(request.id)
            if record is None or not record.said:
                continue
            for by, tree, total, rows, _ in record.said:
                # the token after the path, too: a node that was cut may have said it
                held = follow(tree, tokens[: len(path) + 1])
                record.known[by].learn(held - rows, held, total, OLD_OWN)
                self._case.known[by].learn(held - rows, held, total, OLD_ALL)
            record.said = []

    def _asked(
        self, i: int, records: Sequence[_Record], nodes: Sequence[int], worth: MarginalValue
    ) -> list[int]:
        """The nodes for which a drafter is asked now, 0 where it is not."""
        price = 0.0 if self.worth is None else BESIDES * self._case.costs[i].seconds
        trial = self._case.trials[i]
        asked, pays = [0] * len(nodes), False
        if i > 0 and _dear(worth):
            trial.wait = PATIENCE[0]
            return asked
        for b, (record, most) in enumerate(zip(records, nodes)):
            if most > 0 and record.known[i].gain * worth.token > price:
                pays = True  # though another one may be better now
                if (record.known[i].gain - record.promised) * worth.token > price:
                    asked[b] = most
        if pays:
            trial.wait, trial.patience = 0, PATIENCE[0]
        elif trial.wait > 0:
            trial.wait -= 1
        elif any(nodes):
            trial.turn = next(b for b in _around(trial.turn + 1, len(nodes)) if nodes[b] > 0)
            asked[trial.turn] = nodes[trial.turn]
            trial.wait = trial.patience
            trial.patience = min(2 * trial.patience, PATIENCE[1])
        return asked

    def _ask(
        self,
        i: int,
        batch: Sequence[RequestView],
        nodes: Sequence[int],
        worth: MarginalValue,
        records: Sequence[_Record],
    ) -> None:
        started = self.clock()
        trees = self.drafters[i].propose(batch, nodes)
        taken = self.clock() - started
        if any(tree.tokens for tree in trees):  # else it knew at once that it has nothing to say
            self._case.costs[i].learn(taken / sum(most > 0 for most in nodes))
        row = worth.row / worth.token
        for record, tree in zip(records, trees, strict=True):
            if not tree.tokens:
                continue
            known = record.known[i]
            if tree.scores is None:
                total, promise, rows = 0.0, known.gain, len(tree.tokens) * row
            else:
                likely = [score * known.trust for score in tree.scores]
                paying = [chance for chance in likely if chance > row]  # the others will be cut
                total, rows = sum(paying), len(paying) * row
                promise = total - rows
            record.said.append(_Said(i, tree, total, rows, promise))
            record.promised = max(record.promised, promise)

    def wants(self, batch: Sequence[RequestView], rows: Sequence[range]) -> list[range]:
        """A prompt is shown once, and to look at it takes a drafter little: also one that sleeps, but
        none where rows are so dear that it is not asked."""
        worth = FREE if self.worth is None else self.worth(batch)
        able = self.drafters[:1] if _dear(worth) else self.drafters
        found, layers = wanted(able, batch, rows)
        self.features = tuple(sorted({*self.features, *layers}))
        return found

    def read(
        self, batch: Sequence[RequestView], rows: Sequence[range], features: torch.Tensor
    ) -> None:
        show(self.drafters, batch, rows, features, self.features)

    def release(self, requests: Collection[int]) -> None:
        for drafter in self.drafters:
            drafter.release(requests)
        for request in requests:
            self._records.pop(request, None)

    def _record(self, request: RequestView, bits: int) -> _Record:
        record = self._records.get(request.id)
        if record is None:
            record = self._records[request.id] = _Record()
        if bits not in record.cases:  # what other requests saw is where it begins
            known = (replace(k, count=min(k.count, BEGUN)) for k in self._case.known)
            record.cases[bits] = list(known)
        record.known = record.cases[bits]
        return record


def _drafted(said: Sequence[_Said]) -> list[_Said]:
    """Those that can be grafted, or another one that promises more than each of them."""
    best = max(said, key=lambda one: one.promise)
    return [one for one in said if _alike(one.tree)] if _alike(best.tree) else [best]


def _alike(tree: Tree) -> bool:
    """Whether a tree's nodes were chosen, and it says how likely each is."""
    return tree.probs is None and tree.scores is not None


def _dear(worth: MarginalValue) -> bool:
    return worth.row > DEAR * worth.token


def _around(first: int, count: int) -> Iterator[int]:
    """All places, from one on and then those before it."""
    return ((first + n) % count for n in range(count))
