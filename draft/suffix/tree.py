"""From matches to a tree: what may come next, how far it can be trusted, and the likeliest nodes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush

from fastslow.draft.suffix.confidence import MatchConfidence
from fastslow.draft.suffix.sources import Source
from fastslow.engine.types import Tree

FEW = 4  # runs left of a sample, below which all of them are worth a new search


class MatchRuns:
    """The runs that followed the longest matches, of whatever sources, read in step.

    As tokens come, the runs that go otherwise are dropped. Those that are left are again the
    longest matches: whatever matches one token more now did match one less before.

    Attributes:
        runs: tokens that followed, and those of them that came already.
        at: how many of them came.
        length: tokens that matched when the runs were found.
    """

    def __init__(
        self, sources: Sequence[Source] = (), recent: list[int] | None = None, ahead: int = 0
    ) -> None:
        """See `Source.find`."""
        self.at = 0
        founds = [source.find(recent or [], ahead) for source in sources]
        self.length = max([found.length for found in founds], default=0)
        self.runs: list[Sequence[int]] = []
        self._whole = True
        for found in founds:
            if found.length == self.length:
                self.runs += [run for run in found.runs if run]
                self._whole = self._whole and found.whole

    def follow(self, tokens: list[int], confidence: MatchConfidence) -> None:
        """These tokens came: keep the runs that said so, and let `confidence` know."""
        for token in tokens:
            going = [run for run in self.runs if len(run) > self.at]
            self.runs = [run for run in going if run[self.at] == token]
            if going:
                confidence.learn(self.length + self.at, bool(self.runs))
            self.at += 1
            if not self.runs:
                return

    def last(self, nodes: int) -> bool:
        """Whether they still say all there is to say about the next `nodes` tokens."""
        enough = self._whole or len(self.runs) >= FEW
        return enough and any(len(run) >= self.at + nodes for run in self.runs)


def grow(runs: MatchRuns, confidence: MatchConfidence, nodes: int, least: float) -> Tree:
    """The best nodes first, parents before children.

    A node's score is its parent's, times the share of the parent's runs that go its way, times the
    confidence in a match as long as it would be by then (as in Oliaro et al. 2024, "SuffixDecoding",
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
        whole = score * confidence.of(runs.length + depth) / len(members)
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
