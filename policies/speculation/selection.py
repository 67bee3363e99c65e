"""The choice of the drafters that are asked, of several, and of their proposals that are verified."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fastslow.engine.types import AcceptResult, MarginalValue, RequestView, Tree
from fastslow.policies.speculation.acceptance import node_score
from fastslow.policies.speculation.backoff import Backoff, ByKey, RunningMean, common_key
from fastslow.policies.speculation.tuning import TUNING, SpeculationTuning

FREE = MarginalValue(1.0, 0.0)
Value = Callable[[Sequence[RequestView]], MarginalValue]
Ask = Callable[[int, Sequence[int]], tuple[Sequence[Tree], float]]


class _Proposal(NamedTuple):
    drafter: int
    tree: Tree
    total: float  # tokens that its scores promise
    rows: float  # what its nodes cost, in tokens
    promise: float  # total less rows; without scores, what the drafter usually gains


class _Gain(NamedTuple):
    """The gains of one drafter's proposals."""

    tokens: RunningMean  # accepted, less the cost of the rows in tokens
    calibration: RunningMean  # tokens accepted over tokens promised, where there are scores
    chance: RunningMean  # of a node that the drafter was sure of, if its parent is right

    def learn(self, tokens: Sequence[int], proposal: _Proposal, tuning: SpeculationTuning) -> None:
        """tokens: of the step, the last one the target's."""
        tree = proposal.tree
        right = tree.match(tokens)
        held, leaf = min(len(right), len(tokens) - 1), right[-1] if right else -1
        self.tokens.add(held - proposal.rows)
        missed = [node for node, parent in enumerate(tree.parents) if parent == leaf][:1]
        for node in [*right, *missed]:
            sure = node_score(tree, node)
            if sure is None or sure >= tuning.sure:
                self.chance.add(node in right)
        if proposal.total > 0:
            self.calibration.add(
                min(held / proposal.total * self.calibration.value, tuning.most_calibration)
            )

    def begun(self, tuning: SpeculationTuning) -> _Gain:
        """The gain that a new request begins with, from that of all requests of its key."""
        memory = tuning.own_gain_memory
        count = min(self.tokens.count, tuning.gain_begun)
        return _Gain(
            RunningMean(self.tokens.value, memory, count),
            RunningMean(self.calibration.value, memory, memory),
            RunningMean(
                self.chance.value, tuning.own_chance_memory, min(self.chance.count, memory)
            ),
        )


class _Drafter:
    """A drafter in batches of about one size: with the size change the costs of rows and of drafting."""

    def __init__(self, tuning: SpeculationTuning) -> None:
        memory, self._tuning = tuning.gain_memory, tuning
        self.gains = ByKey(
            lambda: _Gain(
                RunningMean(tuning.prior_gain, memory, 1.0),
                RunningMean(1.0, memory, tuning.own_gain_memory),
                RunningMean(tuning.prior_chance, tuning.node_memory, tuning.prior_nodes),
            )
        )
        # of asking, by request: soon after another proposal, and after a rest, when its weights left the caches
        self.seconds, self.cold = (RunningMean(0.0, tuning.ask_memory) for _ in range(2))
        self.node = RunningMean(0.0, tuning.draft_memory)  # seconds of one
        self.rested = tuning.waking + 1  # steps since it was asked
        # proposals from one rest to the next
        length, runs = tuning.prior_run
        self.runs = RunningMean(length, tuning.ask_memory, runs)
        self._run = 0
        self.backoff = Backoff(*tuning.select_wait, wait=0)  # where it pays for no request
        self.turn = 0  # the request that it is tried for

    @property
    def warm(self) -> bool:
        return self.rested <= self._tuning.waking

    @property
    def price(self) -> float:
        """Seconds of asking it for a request, in a run of usual length: all its proposals pay for the first."""
        more = max(0.0, self.cold.value - self.seconds.value)
        return self.seconds.value + more / max(self.runs.value, self._run)

    def begin(self) -> bool:
        """Begin a proposal, which may raise. Return True if the last step had one, too."""
        warm = self.warm
        if not warm and self._run:
            self.runs.add(self._run)
            self._run = 0
        self._run += 1
        self.rested = 0
        return warm

    def took(self, seconds: float, warm: bool, asked: Sequence[int], trees: Sequence[Tree]) -> None:
        kind = self.seconds if warm else self.cold
        kind.add_time(seconds / sum(most > 0 for most in asked), self._tuning.held_up)
        if nodes := max(len(tree.tokens) for tree in trees):
            self.node.add_time(seconds / nodes, self._tuning.held_up)

    def paying(self, chance: float, value: MarginalValue, asked: int) -> int:
        """Nodes of a chain that give most tokens a second, at least one; all where drafting them is nearly free."""
        tuning, node = self._tuning, self.node.value / (asked * value.token)
        if node < tuning.free_node:
            return tuning.most_nodes
        price, likely, tokens = node + value.row / value.token, 1.0, 1.0
        for nodes in range(tuning.most_nodes):
            likely *= chance
            if likely * (1 + nodes * price) < price * tokens:
                return max(nodes, 1)
            tokens += likely
        return tuning.most_nodes


@dataclass(slots=True)
class _Request:
    by_batch: dict[int, list[_Gain]] = field(default_factory=dict)  # by its drafters' identity
    gains: list[_Gain] = field(default_factory=list)  # of this step's batch
    proposals: list[_Proposal] = field(default_factory=list)  # of this step
    promised: float = 0.0  # tokens, by the proposal that promises most

    def add(self, drafter: int, tree: Tree, row: float) -> None:
        """Add a proposal; `row` is what a row costs, in tokens."""
        gain = self.gains[drafter]
        if tree.scores is None:
            total, promise, rows = 0.0, gain.tokens.value, len(tree.tokens) * row
        else:
            likely = [score * gain.calibration.value for score in tree.scores]
            paying = [chance for chance in likely if chance > row]  # the others will be cut
            total, rows = sum(paying), len(paying) * row
            promise = total - rows
        self.proposals.append(_Proposal(drafter, tree, total, rows, promise))
        self.promised = max(self.promised, promise)


class AdaptiveSelection:
    """Asks a drafter for a request where it should gain more than those before it promise.

    The cheapest drafter comes first. A drafter is asked where its usual gain, less what those before it
    promise in this step, exceeds the cost of its time and rows. A drafter that pays for no request is
    retried for one request in two steps, at growing intervals; until shortly before, its features are not gathered.
    A promise is the sum of a tree's scores, corrected by how such promises came true in this request.
    Where a node takes long to draft, no more are asked for than should pay, by how often the request's were right.
    Choices depend on earlier steps and on scores alone, never on tokens sampled in this one. `value` is of a token
    and a row in the batch's step; None: drafters and rows cost nothing.
    """

    def __init__(
        self, drafters: int, value: Value | None = None, tuning: SpeculationTuning = TUNING
    ) -> None:
        self._count = drafters
        self._value = value
        self._tuning = tuning
        # by the bits of a batch's size, and by key: what asking takes is learnt of who asked
        self._sizes = defaultdict[int, ByKey[list[_Drafter]]](
            lambda: ByKey(lambda: [_Drafter(tuning) for _ in range(drafters)])
        )
        self._requests: dict[int, _Request] = {}
        self._drafters: list[_Drafter] = []  # of this step's batch

    def collect(
        self, batch: Sequence[RequestView], nodes: Sequence[int], ask: Ask
    ) -> list[list[tuple[int, Tree]]]:
        value, self._drafters = self._value_of(batch), self._known(batch)
        requests = [self._request(request) for request in batch]
        for drafter in range(self._count):
            asked = self._asked(drafter, requests, nodes, value)
            if any(asked):
                known = self._drafters[drafter]
                warm = known.begin()
                trees, seconds = ask(drafter, asked)
                unsure = not any(tree.tokens for tree in trees)
                took = seconds > self._tuning.free_node * value.token * len(batch)
                if not unsure or took:  # else it rested, and had nothing to say
                    known.took(seconds, warm, asked, trees)
                for view, request, tree, most in zip(batch, requests, trees, asked, strict=True):
                    if tree.tokens:
                        request.add(drafter, tree, value.row / value.token)
                    elif unsure and took and most > 0:
                        for gain in (request.gains[drafter], known.gains.of(view.memory_key)):
                            gain.tokens.add(0.0)
        for request in requests:
            request.proposals = _compatible(request.proposals)
        return [[(made.drafter, made.tree) for made in request.proposals] for request in requests]

    def awake(self, drafter: int) -> bool:
        return self._drafters[drafter].backoff.wait <= self._tuning.waking

    def able(self, batch: Sequence[RequestView]) -> int:
        return 1 if self._rows_cost_too_much(self._value_of(batch)) else self._count

    def judge(self, batch: Sequence[RequestView], result: AcceptResult) -> None:
        drafters, memory = self._known(batch), self._tuning.gain_memory
        for known in drafters:  # also where nobody may draft
            known.rested += 1
            known.backoff.skip()
        for view, tokens in zip(batch, result.tokens, strict=True):
            request = self._requests.get(view.id)
            if request is None:
                continue
            asked = {made.drafter for made in request.proposals}
            for n, known in enumerate(drafters):
                if n not in asked:  # bad luck is forgotten, where others' drafts pay
                    own, usual = request.gains[n].tokens, known.gains.of(view.memory_key).tokens
                    own.value += (usual.value - own.value) / memory
            for made in request.proposals:
                every = self._drafters[made.drafter].gains.of(view.memory_key)
                for gain in (request.gains[made.drafter], every):
                    gain.learn(tokens, made, self._tuning)
            request.proposals = []

    def release(self, requests: Collection[int]) -> None:
        for request in requests:
            self._requests.pop(request, None)

    def _asked(
        self, drafter: int, requests: Sequence[_Request], nodes: Sequence[int], value: MarginalValue
    ) -> list[int]:
        """Nodes that a drafter is asked for, by request; 0 where it is not asked."""
        known = self._drafters[drafter]
        asked, pays, warm = [0] * len(nodes), False, known.warm
        if drafter > 0 and self._rows_cost_too_much(value):
            known.backoff.restart(known.backoff.first)
            return asked
        price = now = 0.0
        if self._value is not None:
            step = value.token * len(nodes)
            price = self._with_overhead(known.price, step)
            now = self._with_overhead(known.seconds.value, step) if warm else price
        for b, (request, most) in enumerate(zip(requests, nodes)):
            gain = request.gains[drafter].tokens.value
            if most > 0 and gain * value.token > price:
                pays = True  # even if another drafter is better now
            if most > 0 and (gain - request.promised) * value.token > now:
                asked[b] = most
        if pays:
            known.backoff.restart(0)
        elif known.backoff.due and any(nodes):
            # twice, since the first proposal after a rest does not tell what asking usually takes
            around = ((known.turn + (not warm) + n) % len(nodes) for n in range(len(nodes)))
            known.turn = next(b for b in around if nodes[b] > 0)
            asked[known.turn] = nodes[known.turn]
            if warm:
                known.backoff.again(2)
        if self._value is not None and (several := sum(most > 0 for most in asked)):
            chances = (request.gains[drafter].chance.value for request in requests)
            asked = [
                min(most, known.paying(chance, value, several))
                for most, chance in zip(asked, chances)
            ]
        return asked

    def _with_overhead(self, seconds: float, step: float) -> float:
        """The price of asking, from the seconds that it takes and those of a step."""
        tuning = self._tuning
        return seconds + min((tuning.ask_overhead - 1) * seconds, tuning.most_overhead * step)

    def _known(self, batch: Sequence[RequestView]) -> list[_Drafter]:
        """The drafters in batches of this size, and of this key or of several."""
        size = len(batch).bit_length()
        return self._sizes[size].of(common_key([request.memory_key for request in batch]))

    def _request(self, view: RequestView) -> _Request:
        if (request := self._requests.get(view.id)) is None:
            request = self._requests[view.id] = _Request()
        if (place := id(self._drafters)) not in request.by_batch:
            gains = (known.gains.of(view.memory_key) for known in self._drafters)
            request.by_batch[place] = [gain.begun(self._tuning) for gain in gains]
        request.gains, request.proposals, request.promised = request.by_batch[place], [], 0.0
        return request

    def _value_of(self, batch: Sequence[RequestView]) -> MarginalValue:
        return FREE if self._value is None else self._value(batch)

    def _rows_cost_too_much(self, value: MarginalValue) -> bool:
        return value.row > self._tuning.max_row_price * value.token


def _compatible(proposals: Sequence[_Proposal]) -> list[_Proposal]:
    """The proposals that can be merged into one tree, or a single one that promises more."""
    if not proposals:
        return []
    best = max(proposals, key=lambda made: made.promise)
    return [p for p in proposals if _mergeable(p.tree)] if _mergeable(best.tree) else [best]


def _mergeable(tree: Tree) -> bool:
    """True where a tree's nodes were chosen, not sampled, and have scores."""
    return tree.probs is None and tree.scores is not None
