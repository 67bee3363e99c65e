"""Several drafters, of which the one that promises most speaks, per request and step."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import torch

from fastslow.draft.columns import columns, union
from fastslow.engine.types import Draft, Drafter, RequestView, Tree, Verdict, Worth

PRIOR = 1.0  # tokens that a drafter is thought to bring before it has spoken
RATE = 0.1  # weight of the newest proposal of a request
SLOW = 0.02  # of the newest proposal of any request, and of the newest time
PATIENCE = 8, 128  # steps in which a drafter that does not pay is not asked: at first, and at last
WAKING = 4  # steps before it is asked again in which its features are gathered
FREE = Worth(1.0, 0.0)


@dataclass(slots=True)
class _Known:
    """What proposals of one drafter brought, running means: tokens accepted less what the rows took,
    in tokens; and accepted over promised, where scores promise something."""

    gain: float = PRIOR
    trust: float = 1.0

    def learn(self, gain: float, accepted: int, promised: float, rate: float) -> None:
        self.gain += rate * (gain - self.gain)
        if promised > 0:
            kept = min(accepted / promised * self.trust, 1.5)
            self.trust += rate * (kept - self.trust)


@dataclass(slots=True)
class _Turn:
    """One drafter for one request. wait: steps until it is asked whatever it brought."""

    known: _Known
    wait: int = 0
    patience: int = PATIENCE[0]


@dataclass(slots=True)
class _Record:
    """One request's drafters, and what was said in this step.

    spoke: the drafter of the tree, or -1. said: tokens that it promises; promised: the same less its
    rows; rows: what these take, in tokens.
    """

    turns: list[_Turn]
    spoke: int = -1
    said: float = 0.0
    promised: float = 0.0
    rows: float = 0.0


@dataclass(slots=True)
class Best:
    """`Best([a, b])`: a speaks where its proposal promises at least what b would bring.

    The cheaper drafters come first. One is asked where what it has brought, less what those before
    it promise now, is worth its time and its rows; else it waits, longer and longer, until it is
    tried again. So one that is never worth its time is hardly ever run, and its features are not
    gathered. A drafter's promise is the sum of its nodes' scores, corrected by how such promises
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
    _seconds: list[float] = field(default_factory=list)  # that asking takes for each request

    def __post_init__(self) -> None:
        if not self.drafters:
            raise ValueError("Best() needs at least one drafter")
        self.features = union(self.drafters)
        self._known = [_Known() for _ in self.drafters]
        self._seconds = [0.0] * len(self.drafters)

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> Draft:
        trees = [Tree()] * len(batch)
        records = [self._record(request) for request in batch]
        for record in records:
            record.spoke, record.promised = -1, 0.0
        worth = FREE if self.worth is None else self.worth(batch)
        awake = []
        for i, drafter in enumerate(self.drafters):
            asked = [
                most if most > 0 and self._asks(record, i, worth) else 0
                for record, most in zip(records, nodes)
            ]
            if any(asked):
                self._ask(i, batch, asked, worth, trees, records)
            if any(record.turns[i].wait <= WAKING for record in records):
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
            record.turns[i].known.learn(gain, accepted, record.said, RATE)
            self._known[i].learn(gain, accepted, record.said, SLOW)
            record.spoke = -1

    def _asks(self, record: _Record, i: int, worth: Worth) -> bool:
        """Whether a drafter is asked for a request now."""
        turn = record.turns[i]
        price = 0.0 if self.worth is None else self._seconds[i]
        if (turn.known.gain - record.promised) * worth.token > price:
            turn.wait, turn.patience = 0, PATIENCE[0]
            return True
        if turn.known.gain * worth.token > price:
            return False  # another one is better now; that says nothing against it
        if turn.wait > 0:
            turn.wait -= 1
            return False
        turn.wait = turn.patience
        turn.patience = min(2 * turn.patience, PATIENCE[1])
        return True

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
        self._seconds[i] = before + SLOW * (min(taken, 4 * before) - before)
        row = worth.row / worth.token
        for b, record in enumerate(records):
            tree = draft.tree(b)
            if not tree.tokens:
                continue
            known = record.turns[i].known
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
            turns = [_Turn(replace(known)) for known in self._known]
            record = self._records[request.id] = _Record(turns)
        return record
