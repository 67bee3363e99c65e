"""The chance that drafted tokens are accepted: learnt for a drafter, adjusted for a request."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from fastslow.engine.types import Tree
from fastslow.policies.speculation.backoff import RunningMean
from fastslow.policies.speculation.tuning import TUNING, SpeculationTuning


class DraftYield:
    """Nodes that are accepted and nodes that run when a drafter is asked: two running means over `memory`
    proposals."""

    def __init__(self, accepted: float, ran: float, memory: float) -> None:
        self.accepted = RunningMean(accepted, memory, memory)
        self.ran = RunningMean(ran, memory, memory)

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
        self.brought = DraftYield(*tuning.prior_yield, tuning.yield_memory)
        self._seen: dict[tuple[int, int, int], RunningMean] = {}

    def chance(self, depth: int, score: float | None, by: int = 0) -> float:
        """In 0..1, of a node at a depth (1 = next token) if its parent is accepted, from the score that
        its drafter `by` gave it, if any; else from nodes of the depth before, until more is known."""
        prior = score
        if prior is None:
            depth = min(depth, self.tuning.deepest)
            prior = self.chance(depth - 1, None, by) if depth > 1 else self.tuning.prior_chance
        seen = self._seen.get(self._kind(depth, score, by))
        if seen is None:
            return prior
        weight = self.tuning.prior_nodes
        return (seen.value * seen.count + weight * prior) / (seen.count + weight)

    def learn(self, depth: int, score: float | None, accepted: bool, by: int = 0) -> None:
        for kind in {self._kind(depth, score, by), self._kind(depth, None, by)}:
            if (seen := self._seen.get(kind)) is None:
                seen = self._seen[kind] = RunningMean(0.0, self.tuning.node_memory)
            seen.add(accepted)

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
        p = min(max(self._model.chance(depth, score, by), 1e-3), 1 - 1e-3)
        return 1 / (1 + (1 - p) / p * math.exp(-self._shifts.get(by, 0.0)))

    def survival(self, tree: Tree) -> list[float]:
        """For every node, the chance that it and all before it are accepted."""
        chances: list[float] = []
        for node, (parent, depth) in enumerate(zip(tree.parents, tree.depths)):
            before = chances[parent] if parent >= 0 else 1.0
            chances.append(before * self.chance(depth, _score(tree, node), _by(tree, node)))
        return chances

    def learn(self, tree: Tree, accepted: Sequence[int]) -> None:
        """A tree was verified, and these nodes were accepted."""
        tuning = self._model.tuning
        for by in set(tree.drafter_ids or (0,)):
            self._shifts[by] = self._shifts.get(by, 0.0) * tuning.bias_decay
        for node in _judged(tree, accepted):
            depth, score, by = tree.depths[node], _score(tree, node), _by(tree, node)
            error = (node in accepted) - self.chance(depth, score, by)
            shift = self._shifts[by] + tuning.bias_rate * error
            self._shifts[by] = min(max(shift, -tuning.bias_limit), tuning.bias_limit)
            self._model.learn(depth, score, node in accepted, by)


def _judged(tree: Tree, accepted: Sequence[int]) -> Iterator[int]:
    """Nodes whose parent was accepted: what comes after a rejected node does not count."""
    return (node for node, parent in enumerate(tree.parents) if parent < 0 or parent in accepted)


def _by(tree: Tree, node: int) -> int:
    return 0 if tree.drafter_ids is None else tree.drafter_ids[node]


def _score(tree: Tree, node: int) -> float | None:
    """The drafter's estimate for a node whose parent is accepted."""
    if tree.scores is None:
        return None
    parent = tree.parents[node]
    before = tree.scores[parent] if parent >= 0 else 1.0
    return min(1.0, tree.scores[node] / before) if before > 0 else 0.0
