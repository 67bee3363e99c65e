"""From runs to a tree: the likeliest nodes within a budget, by counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush

from fastslow.draft.suffix.runs import Runs
from fastslow.draft.suffix.trust import Trust
from fastslow.engine.types import Tree


def grow(runs: Runs, trust: Trust, nodes: int, least: float) -> Tree:
    """The best nodes first, parents before children.

    A node's score is its parent's, times the share of the parent's runs that go its way, times the
    trust in a match as long as it would be by then (as in Oliaro et al. 2024, "SuffixDecoding",
    where the share alone counts).

    Args:
        nodes: most nodes.
        least: nodes that score below are left out.
    """
    tokens: list[int] = []
    parents: list[int] = []
    scores: list[float] = []
    heap: list[tuple[float, int, int, int, Sequence[Sequence[int]]]] = []
    made = 0  # of equal scores, the one found first

    def push(members: Sequence[Sequence[int]], depth: int, parent: int, score: float) -> None:
        nonlocal made
        whole = score * trust.of(runs.length + depth) / len(members)
        for token, group in _by_token(members, depth):
            if whole * len(group) >= least:
                heappush(heap, (-whole * len(group), made, parent, token, group))
                made += 1

    depths: list[int] = []
    if runs.runs and nodes > 0:
        push(runs.runs, runs.at, -1, 1.0)
    while heap and len(tokens) < nodes:
        score, _, parent, token, members = heappop(heap)
        depths.append(depths[parent] + 1 if parent >= 0 else runs.at)
        tokens.append(token)
        parents.append(parent)
        scores.append(-score)
        if len(tokens) < nodes:
            push(members, depths[-1] + 1, len(tokens) - 1, -score)
    return Tree(tokens, parents, scores=scores)


def _by_token(
    members: Sequence[Sequence[int]], depth: int
) -> Iterator[tuple[int, Sequence[Sequence[int]]]]:
    """Members that go on, by the token they go on with."""
    if len(members) == 1:  # the common case, and a long one
        return iter([(members[0][depth], members)] if len(members[0]) > depth else [])
    groups: dict[int, list[Sequence[int]]] = {}
    for run in members:
        if len(run) > depth:
            groups.setdefault(run[depth], []).append(run)
    return iter(groups.items())
