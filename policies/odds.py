"""How likely drafted tokens are to be accepted: learnt for a drafter, leant towards a request."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from fastslow.engine.types import Tree

PRIOR = 0.7  # of a node whose drafter says nothing about it
WEIGHT = 4.0  # the prior counts as much as this many nodes that were seen
MEMORY = 256.0  # nodes after which older ones count half
DEEPEST = 8  # deeper nodes share what is known of this depth
BINS = 5  # of what drafters themselves say
HOPE = 0.4, 0.5  # accepted and run each time a drafter is asked, until more is known
AVERAGE = 1 / 200  # weight of the newest time
STRIDE = 0.25  # how fast a request leans
LEAN = 3.0  # furthest, in log-odds
FORGET = 0.99


class Odds:
    """The share of nodes that were accepted where their parent was, for one drafter's name.

    Nodes are told apart by depth, by who drafted them (`Tree.by`) and, where they have scores, by
    those. A node behind a refused one was not judged and counts for nothing.
    """

    def __init__(self) -> None:
        self.accepted, self.ran = HOPE  # nodes, each time the drafter was asked
        self._seen: dict[tuple[int, int, int], list[float]] = {}  # key -> accepted, judged

    def of(self, depth: int, said: float | None, by: int = 0) -> float:
        """Chance in 0..1 of a node at a depth (1 = next token), its parent accepted.

        said: what the drafter thinks of it, or None. by: who drafted it.
        """
        prior = PRIOR if said is None else said
        right, seen = self._seen.get(_key(depth, said, by), (0.0, 0.0))
        return (right + WEIGHT * prior) / (seen + WEIGHT)

    def asked(self, accepted: int, ran: int) -> None:
        """The drafter was asked; so many of its nodes ran and were accepted, perhaps none."""
        self.accepted += (accepted - self.accepted) * AVERAGE
        self.ran += (ran - self.ran) * AVERAGE

    def learn(self, depth: int, said: float | None, accepted: bool, by: int = 0) -> None:
        """A node was judged."""
        entry = self._seen.setdefault(_key(depth, said, by), [0.0, 0.0])
        entry[0] += accepted
        entry[1] += 1
        if entry[1] > MEMORY:
            entry[0] /= 2
            entry[1] /= 2


class Leaning:
    """One request's own acceptance, as a shift of its drafter's log-odds."""

    def __init__(self, odds: Odds) -> None:
        self._odds = odds
        self._shifts: dict[int, float] = {}  # of each who drafts

    def of(self, depth: int, said: float | None, by: int = 0) -> float:
        """As `Odds.of`, for this request."""
        p = min(max(self._odds.of(depth, said, by), 1e-3), 1 - 1e-3)
        return 1 / (1 + (1 - p) / p * math.exp(-self._shifts.get(by, 0.0)))

    def survival(self, tree: Tree) -> list[float]:
        """For each node, the chance that it and all before it are accepted."""
        chances: list[float] = []
        for i, (parent, depth) in enumerate(zip(tree.parents, tree.depths)):
            before = chances[parent] if parent >= 0 else 1.0
            chances.append(before * self.of(depth, _said(tree, i), _by(tree, i)))
        return chances

    def learn(self, tree: Tree, path: Sequence[int]) -> None:
        """A tree was verified, `path` of it accepted."""
        for by in set(tree.by or (0,)):
            self._shifts[by] = self._shifts.get(by, 0.0) * FORGET
        for node, depth in _judged(tree, path):
            by, said, accepted = _by(tree, node), _said(tree, node), node in path
            error = accepted - self.of(depth, said, by)
            self._shifts[by] = min(max(self._shifts[by] + STRIDE * error, -LEAN), LEAN)
            self._odds.learn(depth, said, accepted, by)


def _judged(tree: Tree, path: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Nodes whose parent was accepted, and their depths."""
    depth_of = {-1: 1, **{node: depth + 2 for depth, node in enumerate(path)}}
    for node, parent in enumerate(tree.parents):
        if parent in depth_of:
            yield node, depth_of[parent]


def _by(tree: Tree, node: int) -> int:
    return 0 if tree.by is None else tree.by[node]


def _said(tree: Tree, node: int) -> float | None:
    """What the drafter thinks of a node where its parent is accepted."""
    if tree.scores is None:
        return None
    parent = tree.parents[node]
    before = tree.scores[parent] if parent >= 0 else 1.0
    return min(1.0, tree.scores[node] / before) if before > 0 else 0.0


def _key(depth: int, said: float | None, by: int) -> tuple[int, int, int]:
    return by, min(depth, DEEPEST), -1 if said is None else min(int(said * BINS), BINS - 1)
