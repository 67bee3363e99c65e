"""The chance that drafted tokens are accepted: learnt for a drafter, adjusted for a request."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import mul

from fastslow.engine.types import Tree
from fastslow.policies.speculation.backoff import RunningMean
from fastslow.policies.speculation.tuning import TUNING, SpeculationTuning


class DraftYield:
    """Nodes that are accepted and nodes that run when a drafter is asked: two running means over `memory`
    proposals. What they begin with counts as `count`."""

    def __init__(self, accepted: float, ran: float, memory: float, count: float) -> None:
        self.accepted = RunningMean(accepted, memory, count)
        self.ran = RunningMean(ran, memory, count)

    def add(self, accepted: int, ran: int) -> None:
        self.accepted.add(accepted)
        self.ran.add(ran)

    def gain(self, row_price: float) -> float:
        """Tokens that asking the drafter brings, less what its rows cost."""
        return self.accepted.value - self.ran.value * row_price


class AcceptanceModel:
    """The share of nodes that were accepted where their parent was, for one drafter's name: by depth, by
    drafter (`Tree.drafter_ids`) and by score, where they have one. `brought` is of all requests."""

    def __init__(self, tuning: SpeculationTuning = TUNING) -> None:
        self.tuning = tuning
        self.brought = DraftYield(*tuning.prior_yield, tuning.yield_memory, tuning.yield_begun)
        self._seen: dict[tuple[int, int, int], RunningMean] = {}

    def chance(self, depth: int, score: float | None, by: int = 0) -> float:
        """In 0..1, of a node at a depth (1 = next token) if its parent is accepted, from the score that its drafter `by`
        gave it, if any."""
        prior = self.tuning.prior_chance if score is None else score
        return self._learnt(self._kind(depth, score, by), prior)

    def surest(self, by: int = 0) -> list[float]:
        """For every depth, the chance in 0..1 of the surest node that a drafter may make there, if its parent is
        accepted; as at the depth before, until more is known."""
        prior, found = self.tuning.prior_chance, list[float]()
        for depth in range(1, self.tuning.deepest + 1):
            kinds = ((by, depth, place) for place in range(-1, self.tuning.score_bins))
            seen = [self._learnt(kind, prior) for kind in kinds if kind in self._seen]
            prior = max(seen, default=prior)
            found.append(prior)
        return found

    def learn(self, depth: int, score: float | None, accepted: bool, by: int = 0) -> None:
        kind = self._kind(depth, score, by)
        if (seen := self._seen.get(kind)) is None:
            seen = self._seen[kind] = RunningMean(0.0, self.tuning.node_memory)
        seen.add(accepted)

    def _learnt(self, kind: tuple[int, int, int], prior: float) -> float:
        if (seen := self._seen.get(kind)) is None:
            return prior
        weight = self.tuning.prior_nodes
        return (seen.value * seen.count + weight * prior) / (seen.count + weight)

    def _kind(self, depth: int, score: float | None, by: int) -> tuple[int, int, int]:
        bins = self.tuning.score_bins
        place = -1 if score is None else min(int(score * bins), bins - 1)
        return by, min(depth, self.tuning.deepest), place


class RequestBias:
    """A request's own acceptance, as a shift of the logit of its drafter's."""

    def __init__(self, model: AcceptanceModel) -> None:
        self._model = model
        self._shifts: dict[int, float] = {}  # by drafter

    def chance(self, depth: int, score: float | None, by: int = 0) -> float:
        """As `AcceptanceModel.chance`, for this request."""
        return self._shifted(self._model.chance(depth, score, by), by)

    def surest(self, most: int) -> list[float]:
        """For every depth up to `most`, the chance that a chain of the surest nodes is accepted so far."""
        each = [self._shifted(chance, 0) for chance in self._model.surest()]
        each += each[-1:] * (most - len(each))
        return list(accumulate(each, mul))

    def _shifted(self, chance: float, by: int) -> float:
        p = min(max(chance, 1e-3), 1 - 1e-3)
        return 1 / (1 + (1 - p) / p * math.exp(-self._shifts.get(by, 0.0)))

    def survival(self, tree: Tree) -> list[float]:
        """For every node, the chance that it and all before it are accepted."""
        chances: list[float] = []
        for node, (parent, depth) in enumerate(zip(tree.parents, tree.depths)):
            before = chances[parent] if parent >= 0 else 1.0
            chances.append(before * self.chance(depth, node_score(tree, node), _by(tree, node)))
        return chances

    def learn(self, tree: Tree, accepted: Sequence[int]) -> None:
        """A tree was verified, and these nodes were accepted."""
        tuning = self._model.tuning
        for by in set(tree.drafter_ids or (0,)):
            self._shifts[by] = self._shifts.get(by, 0.0) * tuning.bias_decay
        for node in _judged(tree, accepted):
            depth, score, by = tree.depths[node], node_score(tree, node), _by(tree, node)
            error = (node in accepted) - self.chance(depth, score, by)
            shift = self._shifts[by] + tuning.bias_rate * error
            self._shifts[by] = min(max(shift, -tuning.bias_limit), tuning.bias_limit)
            self._model.learn(depth, score, node in accepted, by)


def _judged(tree: Tree, accepted: Sequence[int]) -> Iterator[int]:
    """Nodes whose parent was accepted: what comes after a rejected node does not count."""
    return (node for node, parent in enumerate(tree.parents) if parent < 0 or parent in accepted)


def _by(tree: Tree, node: int) -> int:
    return 0 if tree.drafter_ids is None else tree.drafter_ids[node]


def node_score(tree: Tree, node: int) -> float | None:
    """The drafter's estimate for a node whose parent is accepted."""
    if tree.scores is None:
        return None
    parent = tree.parents[node]
    before = tree.scores[parent] if parent >= 0 else 1.0
    return min(1.0, tree.scores[node] / before) if before > 0 else 0.0
