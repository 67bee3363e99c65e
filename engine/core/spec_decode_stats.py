"""Speculation of one request in counts, by drafter and by position."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from fastslow.engine.types import Tree


@dataclass(slots=True)
class DraftCounts:
    """Counts of what one drafter drafted, and of what the target accepted of it. A node that several drafters proposed
    counts for the one that was asked first."""

    drafted: int = 0  # nodes that were verified
    accepted: int = 0
    offered_at: list[int] = field(default_factory=list)  # steps with a node at this position
    accepted_at: list[int] = field(default_factory=list)  # of them, accepted to this position

    def add(self, depths: Sequence[int], accepted: Iterable[int]) -> None:
        """Its part of a draft: depths of its nodes, and of those that were accepted."""
        self.drafted += len(depths)
        missing = max(depths) - len(self.offered_at)
        self.offered_at += [0] * missing
        self.accepted_at += [0] * missing
        for depth in set(depths):
            self.offered_at[depth - 1] += 1
        for depth in accepted:
            self.accepted += 1
            self.accepted_at[depth - 1] += 1


@dataclass(slots=True)
class SpecDecodeStats:
    """Counts of one request's steps and drafts."""

    steps: int = 0  # forwards that gave tokens, or only told more of an answer that was asked for
    drafted: int = 0  # nodes that were verified
    accepted: int = 0
    cut: int = 0  # nodes that were proposed and not verified: they would not have paid
    runs: list[int] = field(default_factory=list)  # accepted in each step
    depths: list[int] = field(default_factory=list)  # of the draft in each step
    by_drafter: dict[str, DraftCounts] = field(default_factory=dict)
    preemptions: int = 0
    cached: int = 0  # prompt tokens found in the prefix cache
    probe_rows: int = 0  # that asked for the answer before the thought was over
    draft_seconds: float = 0.0  # of steps that this request was part of
    verify_seconds: float = 0.0

    @property
    def offered_at(self) -> list[int]:
        """By position, the steps whose draft reached it."""
        return _at_least(self.depths)

    @property
    def accepted_at(self) -> list[int]:
        """Of them, those in which the draft was accepted to there."""
        reached = _at_least(self.runs)
        return reached + [0] * (max(self.depths, default=0) - len(reached))

    def add(self, drafter: str, tree: Tree, accepted: Sequence[int]) -> None:
        """A step's tree, its drafter where the tree does not name them, and its accepted nodes."""
        self.steps += 1
        self.runs.append(len(accepted))
        if not tree.tokens:
            self.depths.append(0)
            return
        self.depths.append(max(tree.depths))
        self.drafted += len(tree.tokens)
        self.accepted += len(accepted)
        sources = tree.drafter_names or [drafter] * len(tree.tokens)
        for name in set(sources):
            mine = [d for d, source in zip(tree.depths, sources, strict=True) if source == name]
            taken = (tree.depths[node] for node in accepted if sources[node] == name)
            self.by_drafter.setdefault(name, DraftCounts()).add(mine, taken)


def _at_least(values: Sequence[int]) -> list[int]:
    """Count the values that are at least 1, at least 2, and so on to the largest."""
    counts = [0] * (max(values, default=0) + 1)
    for value in values:
        counts[value] += 1
    return list(accumulate(reversed(counts[1:])))[::-1]
