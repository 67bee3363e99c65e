"""Which of several drafters are asked, and which proposals are drafted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fastslow.engine.types import AcceptResult, MarginalValue, RequestView, Tree
from fastslow.policies.speculation.backoff import Backoff
from fastslow.policies.speculation.running_mean import RunningMean
from fastslow.policies.speculation.settings import TUNING, SpeculationTuning

FREE = MarginalValue(1.0, 0.0)
Value = Callable[[Sequence[RequestView]], MarginalValue]
Ask = Callable[[int, Sequence[int]], tuple[Sequence[Tree], float]]


class _Proposal(NamedTuple):
    """What one drafter proposed.

    total: tokens that it thinks will be accepted; rows: what its nodes take, in tokens; promise: the
    one less the other, or what it usually brings where it gives no scores.
    """

    drafter: int
    tree: Tree
    total: float
    rows: float
    promise: float


class _Gain(NamedTuple):
    """What one drafter's proposals brought: tokens accepted less what the rows took, in tokens; and
    accepted over promised, where scores promise something."""

    tokens: RunningMean
    trust: RunningMean

    def learn(self, held: int, proposal: _Proposal, most_trust: float) -> None:
        self.tokens.add(held - proposal.rows)
        if proposal.total > 0:
            self.trust.add(min(held / proposal.total * self.trust.value, most_trust))

    def begun(self, tuning: SpeculationTuning) -> _Gain:
        """What a new request begins with, where this is known of others."""
        memory = tuning.own_gain_memory
        count = min(self.tokens.count, tuning.gain_begun)
        return _Gain(
            RunningMean(self.tokens.value, memory, count),
            RunningMean(self.trust.value, memory, memory),
        )


class _Drafter:
    """What is known of one drafter in batches of about one size, from all requests: another size
    makes rows and drafting cheaper or dearer."""

    def __init__(self, tuning: SpeculationTuning) -> None:
        memory = tuning.gain_memory
        self.gain = _Gain(
            RunningMean(tuning.prior_gain, memory, 1.0),
            RunningMean(1.0, memory, tuning.own_gain_memory),
        )
        self.seconds = RunningMean(0.0, tuning.ask_memory)  # of asking, for each request
        self.backoff = Backoff(*tuning.select_wait, wait=0)  # where it pays for nobody
        self.turn = 0  # whose request it is tried for


@dataclass(slots=True)
class _Request:
    """What one request's drafters brought, by batch size, and what was said in this step.

    gains: of this step's size. promised: tokens, by the proposal that promises most.
    """

    by_size: dict[int, list[_Gain]] = field(default_factory=dict)
    gains: list[_Gain] = field(default_factory=list)
    said: list[_Proposal] = field(default_factory=list)
    promised: float = 0.0

    def hear(self, drafter: int, tree: Tree, row: float) -> None:
        """row: what a row takes, in tokens."""
        gain = self.gains[drafter]
        if tree.scores is None:
            total, promise, rows = 0.0, gain.tokens.value, len(tree.tokens) * row
        else:
            likely = [score * gain.trust.value for score in tree.scores]
            paying = [chance for chance in likely if chance > row]  # the others will be cut
            total, rows = sum(paying), len(paying) * row
            promise = total - rows
        self.said.append(_Proposal(drafter, tree, total, rows, promise))
        self.promised = max(self.promised, promise)


class AdaptiveSelection:
    """Asks a drafter for a request where it would bring more than those before it promise.

    The cheaper drafters come first. One is asked where what it has brought, less what those before
    it promise now, is worth its time and its rows. One that is worth it for no request is tried for
    one of them after some steps, and more and more of them. So a drafter that never pays is hardly
    ever run, and its features are not gathered. A drafter's promise is the sum of its nodes' scores,
    corrected by how such promises were kept in this request, or what its proposals have brought
    where it gives no scores. Each is judged by what its own tree held of what came. No sampled token
    is looked at before it is accepted, beyond what scores may know.

    Args:
        drafters: how many there are.
        value: what a token and a row are worth in the batch's step; None = drafters and rows cost
            nothing.
    """

    def __init__(
        self, drafters: int, value: Value | None = None, tuning: SpeculationTuning = TUNING
    ) -> None:
        self._count = drafters
        self._value = value
        self._tuning = tuning
        self._sizes: dict[int, list[_Drafter]] = {}  # by the bits of a batch's size
        self._requests: dict[int, _Request] = {}
        self._drafters: list[_Drafter] = []  # of this step's size

    def collect(
        self, batch: Sequence[RequestView], nodes: Sequence[int], ask: Ask
    ) -> list[list[tuple[int, Tree]]]:
        size, worth = len(batch).bit_length(), self._value_of(batch)
        if size not in self._sizes:
            self._sizes[size] = [_Drafter(self._tuning) for _ in range(self._count)]
        self._drafters = self._sizes[size]
        requests = [self._request(request, size) for request in batch]
        for drafter in range(self._count):
            asked = self._asked(drafter, requests, nodes, worth)
            if any(asked):
                trees, seconds = ask(drafter, asked)
                if any(
                    tree.tokens for tree in trees
                ):  # else it knew at once to have nothing to say
                    each = seconds / sum(most > 0 for most in asked)
                    self._drafters[drafter].seconds.add_time(each, self._tuning.held_up)
                for request, tree in zip(requests, trees, strict=True):
                    if tree.tokens:
                        request.hear(drafter, tree, worth.row / worth.token)
        for request in requests:
            request.said = _compatible(request.said)
        return [[(one.drafter, one.tree) for one in request.said] for request in requests]

    def awake(self, drafter: int) -> bool:
        return self._drafters[drafter].backoff.wait <= self._tuning.waking

    def able(self, batch: Sequence[RequestView]) -> int:
        return 1 if self._dear(self._value_of(batch)) else self._count

    def judge(self, batch: Sequence[RequestView], verdict: AcceptResult) -> None:
        for view, path, tokens in zip(batch, verdict.paths, verdict.tokens, strict=True):
            request = self._requests.get(view.id)
            if request is None:
                continue
            for one in request.said:
                # the token after the path, too: a node that was cut may have said it
                held = len(one.tree.follow(tokens[: len(path) + 1]))
                request.gains[one.drafter].learn(held, one, self._tuning.most_trust)
                self._drafters[one.drafter].gain.learn(held, one, self._tuning.most_trust)
            request.said = []

    def release(self, requests: Collection[int]) -> None:
        for request in requests:
            self._requests.pop(request, None)

    def _asked(
        self,
        drafter: int,
        requests: Sequence[_Request],
        nodes: Sequence[int],
        worth: MarginalValue,
    ) -> list[int]:
        """The nodes for which a drafter is asked now, 0 for requests where it is not."""
        known = self._drafters[drafter]
        asked, pays = [0] * len(nodes), False
        if drafter > 0 and self._dear(worth):
            known.backoff.restart(known.backoff.first)
            return asked
        price = 0.0
        if self._value is not None:
            price = self._tuning.ask_overhead * known.seconds.value
        for b, (request, most) in enumerate(zip(requests, nodes)):
            gain = request.gains[drafter].tokens.value
            if most > 0 and gain * worth.token > price:
                pays = True  # though another one may be better now
                if (gain - request.promised) * worth.token > price:
                    asked[b] = most
        if pays:
            known.backoff.restart(0)
        elif not known.backoff.due:
            known.backoff.skip()
        elif any(nodes):
            around = ((known.turn + 1 + n) % len(nodes) for n in range(len(nodes)))
            known.turn = next(b for b in around if nodes[b] > 0)
            asked[known.turn] = nodes[known.turn]
            known.backoff.again(2)
        return asked

    def _request(self, view: RequestView, size: int) -> _Request:
        if (request := self._requests.get(view.id)) is None:
            request = self._requests[view.id] = _Request()
        if size not in request.by_size:  # what other requests saw is where it begins
            request.by_size[size] = [known.gain.begun(self._tuning) for known in self._drafters]
        request.gains, request.said, request.promised = request.by_size[size], [], 0.0
        return request

    def _value_of(self, batch: Sequence[RequestView]) -> MarginalValue:
        return FREE if self._value is None else self._value(batch)

    def _dear(self, worth: MarginalValue) -> bool:
        return worth.row > self._tuning.dearest_row * worth.token


def _compatible(said: Sequence[_Proposal]) -> list[_Proposal]:
    """Those that can be merged, or another one that promises more than each of them."""
    if not said:
        return []
    best = max(said, key=lambda one: one.promise)
    return [one for one in said if _mergeable(one.tree)] if _mergeable(best.tree) else [best]


def _mergeable(tree: Tree) -> bool:
    """Whether a tree's nodes were chosen, and it says how likely each is."""
    return tree.probs is None and tree.scores is not None
