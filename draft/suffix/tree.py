"""From matches to a tree: which tokens may come next, how likely they are, and the likeliest nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush

from fastslow.draft.suffix.sources import MAX_MATCH, Source
from fastslow.engine.types import Tree

PRIOR_WEIGHT = 8.0  # the prior counts as much as this many tokens
MEMORY = 512.0  # tokens after which older ones count half
FEW = 4  # runs left of a sample, below which a new search pays


class MatchConfidence:
    """For each length of a match, the share of next tokens that were in one of its runs, learnt while
    drafting. It starts at length / (length + 1.5): a longer match errs less."""

    def __init__(self) -> None:
        self._total = [PRIOR_WEIGHT] * (MAX_MATCH + 1)
        self._right = [PRIOR_WEIGHT * n / (n + 1.5) for n in range(MAX_MATCH + 1)]

    def of(self, length: int) -> float:
        length = min(length, MAX_MATCH)
        return self._right[length] / self._total[length]

    def learn(self, length: int, right: bool) -> None:
        """Note whether the token after a match of `length` tokens was in one of its runs."""
        length = min(length, MAX_MATCH)
        self._total[length] += 1
        self._right[length] += right
        if self._total[length] > MEMORY:
            self._total[length] /= 2
            self._right[length] /= 2


class MatchRuns:
    """The runs of tokens after the longest matches of all sources, read in step.

    As tokens come, the runs with another token are dropped. The runs that are left are again the
    longest matches: whatever matches one token more now did match one less before.

    at: how many tokens came since the runs were found. length: tokens that matched then.
    """

    def __init__(
        self, sources: Sequence[Source] = (), recent: list[int] | None = None, ahead: int = 0
    ) -> None:
        self.at = 0
        matches = [source.find(recent or [], ahead) for source in sources]
        self.length = max([match.length for match in matches], default=0)
        self.runs: list[Sequence[int]] = []
        self._whole = True
        for length, runs, whole in matches:
            if length == self.length:
                self.runs += [run for run in runs if run]
                self._whole = self._whole and whole

    def advance(self, tokens: list[int], confidence: MatchConfidence) -> None:
        """Drop the runs with other tokens than these, which came, and teach `confidence`."""
        for token in tokens:
            going = [run for run in self.runs if len(run) > self.at]
            self.runs = [run for run in going if run[self.at] == token]
            if going:
                confidence.learn(self.length + self.at, bool(self.runs))
            self.at += 1
            if not self.runs:
                return

    def enough_for(self, nodes: int) -> bool:
        """True where no new search would find more about the next `nodes` tokens."""
        enough = self._whole or len(self.runs) >= FEW
        return enough and any(len(run) >= self.at + nodes for run in self.runs)


def grow(runs: MatchRuns, confidence: MatchConfidence, nodes: int, min_score: float) -> Tree:
    """A tree of at most `nodes` nodes, likeliest first; nodes below `min_score` (0..1) are left out.

    A node's score is its parent's, times the share of the parent's runs with its token, times the
    confidence in a match as long as it would be by then (as in Oliaro et al. 2024, "SuffixDecoding",
    where the share alone counts).
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
            if whole * len(group) >= min_score:
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
    """Members with a next token, by that token."""
    if len(members) == 1:  # the usual case, and a long one
        return iter([(members[0][depth], members)] if len(members[0]) > depth else [])
    groups: dict[int, list[Sequence[int]]] = {}
    for run in members:
        if len(run) > depth:
            groups.setdefault(run[depth], []).append(run)
    return iter(groups.items())
