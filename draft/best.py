"""Several drafters, of which the one that promises most speaks, per request and step."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from fastslow.draft.columns import columns, union
from fastslow.engine.types import Draft, Drafter, RequestView, Tree, Verdict, Worth

PRIOR = 1.0  # tokens that a drafter is thought to bring before it has spoken
OLD = 10.0, 50.0  # proposals after which older ones fade: of a request, of all requests
STEADY = 0.02  # weight of the newest time
PATIENCE = 8, 128  # steps in which a drafter that pays for nobody is not tried: at first, at last
WAKING = 4  # steps before it is tried in which its features are gathered
BEGUN = 3.0  # proposals of its own as which those of others count for a new request
FREE = Worth(1.0, 0.0)


@dataclass(slots=True)
class _Known:
    """What proposals of one drafter brought, running means: tokens accepted less what the rows took,
    in tokens; and accepted over promised, where scores promise something."""

    gain: float = PRIOR
    trust: float = 1.0
    count: float = 1.0

    def learn(self, gain: float, accepted: int, promised: float, old: float) -> None:
        self.count = min(self.count + 1, old)
        self.gain += (gain - self.gain) / self.count
        if promised > 0:
            kept = min(accepted / promised * self.trust, 1.5)
            self.trust += (kept - self.trust) / max(self.count, OLD[0])


@dataclass(slots=True)
class _Trial:
    """When a drafter that pays for nobody is tried again. wait, patience: steps. turn: whose."""

    wait: int = 0
    patience: int = PATIENCE[0]
    turn: int = 0


@dataclass(slots=True)
class _Record:
    """What one request's drafters brought, and what was said in this step.

    spoke: the drafter of the tree, or -1. said: tokens that it promises; promised: the same less its
    rows; rows: what these take, in tokens.
    """

    known: list[_Known]
    spoke: int = -1
    said: float = 0.0
    promised: float = 0.0
    rows: float = 0.0


@dataclass(slots=True)
class Best:
    """`Best([a, b])`: a speaks where its proposal promises at least what b would bring.

    The cheaper drafters come first. One is asked where what it has brought, less what those before
    it promise now, is worth its time and its rows. One that is worth it for no request is tried for
    one of them after some steps, and more and more of them. So a drafter that never pays is hardly
    ever run, and its features are not gathered. A drafter's promise is the sum of its nodes' scores, corrected by how such promises
    were kept in this request, or what its proposals have brought where it gives no scores. No
    sampled token is looked at, beyond what scores may know.

    Args:
        drafters: in the order in which they are asked; at least one.
        worth: what a token and a row are worth in the batch's step; None = drafters and rows cost
            nothing.
        clock: seconds.

    Attributes:
        features: the layers that those read who draft now or soon.
    """

    drafters: Sequence[Drafter]
    worth: Callable[[Sequence[RequestView]], Worth] | None = None
    clock: Callable[[], float] = time.perf_counter
    features: tuple[int, ...] = ()
    _records: dict[int, _Record] = field(default_factory=dict)
    _known: list[_Known] = field(default_factory=list)  # of all requests
    _trials: list[_Trial] = field(default_factory=list)
    _seconds: list[float] = field(default_factory=list)  # that asking takes for each request

    def __post_init__(self) -> None:
        if not self.drafters:
            raise ValueError("Best() needs at least one drafter")
        self.features = union(self.drafters)
        self._known = [_Known() for _ in self.drafters]
        self._trials = [_Trial() for _ in self.drafters]
        self._seconds = [0.0] * len(self.drafters)

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> Draft:
        trees = [Tree()] * len(batch)
        records = [self._record(request) for request in batch]
        for record in records:
            record.spoke, record.promised = -1, 0.0
        worth = FREE if self.worth is None else self.worth(batch)
        awake = []
        for i, drafter in enumerate(self.drafters):
            asked = self._asked(i, records, nodes, worth)
            if any(asked):
                self._ask(i, batch, asked, worth, trees, records)
            if self._trials[i].wait <= WAKING:
                awake.append(drafter)
        self.features = union(awake)
        return Draft.of(trees)

    def commit(
        self, batch: Sequence[RequestView], verdict: Verdict, features: torch.Tensor | None
    ) -> None:
        for drafter in self.drafters:
            there = features is not None and set(drafter.features) <= set(self.features)
            own = columns(features, self.features, drafter.features) if there else None
            drafter.commit(batch, verdict, own)
        for request, path in zip(batch, verdict.paths, strict=True):
            record = self._records.get(request.id)
            if record is None or record.spoke < 0:
                continue
            i, accepted = record.spoke, len(path)
            gain = accepted - record.rows
            record.known[i].learn(gain, accepted, record.said, OLD[0])
            self._known[i].learn(gain, accepted, record.said, OLD[1])
            record.spoke = -1

    def _asked(
        self, i: int, records: Sequence[_Record], nodes: Sequence[int], worth: Worth
    ) -> list[int]:
        """The nodes for which a drafter is asked now, 0 where it is not."""
        price = 0.0 if self.worth is None else self._seconds[i]
        trial = self._trials[i]
        asked, pays = [0] * len(nodes), False
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
        worth: Worth,
        trees: list[Tree],
        records: Sequence[_Record],
    ) -> None:
        started = self.clock()
        draft = self.drafters[i].propose(batch, nodes)
        taken = (self.clock() - started) / sum(most > 0 for most in nodes)
        before = self._seconds[i] or taken
        self._seconds[i] = before + STEADY * (min(taken, 4 * before) - before)
        row = worth.row / worth.token
        for b, record in enumerate(records):
            tree = draft.tree(b)
            if not tree.tokens:
                continue
            known = record.known[i]
            if tree.scores is None:
                said, promise, rows = 0.0, known.gain, len(tree.tokens) * row
            else:
                likely = [score * known.trust for score in tree.scores]
                paying = [chance for chance in likely if chance > row]  # the others will be cut
                said, rows = sum(paying), len(paying) * row
                promise = said - rows
            if record.spoke < 0 or promise > record.promised:
                trees[b] = tree._replace(by=i)
                record.spoke, record.said, record.rows = i, said, rows
                record.promised = promise

    def release(self, requests: Collection[int]) -> None:
        for drafter in self.drafters:
            drafter.release(requests)
        for request in requests:
            self._records.pop(request, None)

    def _record(self, request: RequestView) -> _Record:
        record = self._records.get(request.id)
        if record is None:  # what other requests saw is where it begins
            known = [replace(of_all, count=min(of_all.count, BEGUN)) for of_all in self._known]
            record = self._records[request.id] = _Record(known)
        return record


def _around(first: int, count: int) -> Iterator[int]:
    """All places, from one on and then those before it."""
    return ((first + n) % count for n in range(count))
